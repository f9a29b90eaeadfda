//! Merging: one layer in place of several.
//!
//! A merge drops the versions that no retained point sees any more, those cut off by a truncation,
//! and the pages of files that are gone.

use crate::error::{Error, Result};
use crate::locks::{read, write};
use crate::storage::catalog::{LaneRecord, LayerRecord};
use crate::storage::index::versions::Retained;
use crate::storage::layer::dictionary;
use crate::storage::layer::format::{ENTRY_BYTES, GROUP_PAGES, LayerEntry, LayerId};
use crate::storage::layer::writer::LayerWriter;
use crate::storage::layer::{Access, Layer};
use crate::storage::page::{LaneKind, PAGE_BYTES, Position, TimelineId};
use crate::storage::store::Store;
use crate::storage::timeline::Timeline;
use crate::storage::upkeep::children::{self, Child};
use crate::storage::upkeep::pace::Pace;
use crate::storage::upkeep::publish::healthy;
use std::iter::Peekable;
use std::ops::Range;
use std::sync::Arc;

/// A merged layer that is written and does not count yet.
pub(super) struct Merged {
    pub(super) layer: Arc<Layer>,
    /// Numbers of the layers that it replaces, newest first.
    replaces: Vec<u64>,
}

impl Merged {
    /// What the catalog is to say of a lane of which it says `now`: others may have been sealed
    /// meanwhile.
    pub(in crate::storage) fn record(&self, now: &LaneRecord) -> LaneRecord {
        let mut record = now.clone();
        let range = self.range(now.layers.iter().map(|layer| layer.number));
        record.layers.splice(
            range,
            [LayerRecord { number: self.layer.id().number, bytes: self.layer.bytes() }],
        );
        record
    }

    fn range(&self, mut numbers: impl Iterator<Item = u64>) -> Range<usize> {
        let first = numbers.position(|number| number == self.replaces[0]);
        let first = first.unwrap_or_else(|| {
            panic!("layer {:x} was replaced by another merge", self.replaces[0])
        });
        let range = first..first + self.replaces.len();
        for (replaced, number) in self.replaces.iter().skip(1).zip(numbers) {
            assert_eq!(*replaced, number, "the layers to be replaced do not lie together");
        }
        range
    }
}

/// One of the layers that are merged.
pub(super) struct Input<I: Iterator> {
    layer: Arc<Layer>,
    entries: Peekable<I>,
    /// The group that was read last.
    group: Option<(u32, Vec<u8>)>,
}

impl<I: Iterator> Input<I> {
    pub(super) fn of(layer: &Arc<Layer>, entries: I) -> Self {
        Self { layer: Arc::clone(layer), entries: entries.peekable(), group: None }
    }
}

/// What decides which versions of a file's blocks are kept, all of it as of one moment: a cut may
/// hide a version from the head that a child, forked just before, still sees.
#[derive(Clone, Default)]
pub(super) struct Fate {
    pub(super) inode: u64,
    pub(in crate::storage) retained: Retained,
    /// All of it is gone for everybody.
    pub(super) forgotten: bool,
    pub(super) cuts: Vec<(Position, u32)>,
    /// What no layer says of a block is zeros.
    pub(super) zeros_below: bool,
}

impl Fate {
    /// Of the versions of a block, oldest first, those that somebody sees. Whoever forks later sees
    /// the newest; those who were forked where it is `covered` do not look here.
    pub(super) fn kept(
        &self,
        versions: &[(LayerEntry, usize)],
        covered: &[Position],
    ) -> Vec<(LayerEntry, usize)> {
        let mut kept: Vec<(LayerEntry, usize)> = Vec::new();
        if self.forgotten {
            return kept;
        }
        for (nth, (entry, input)) in versions.iter().enumerate() {
            let end = self.end(versions, nth);
            let seen = end.is_none_or(|end| self.retained.sees_but(covered, entry.position, end));
            let implied = entry.page.is_none() && kept.is_empty() && self.zeros_below;
            if seen && !implied {
                kept.push((*entry, *input));
            }
        }
        kept
    }

    /// Whether any of the versions may be older than what the head sees.
    pub(super) fn are_old(&self, versions: &[(LayerEntry, usize)]) -> bool {
        versions.len() > 1 || !self.cuts.is_empty()
    }

    /// From where on a version of a block counts no more.
    pub(super) fn end(&self, versions: &[(LayerEntry, usize)], nth: usize) -> Option<Position> {
        let entry = &versions[nth].0;
        let cuts_it = |(at, from): &&(Position, u32)| *at > entry.position && *from <= entry.block;
        let cut = self.cuts.iter().find(cuts_it).map(|(at, _)| *at);
        let next = versions.get(nth + 1).map(|(next, _)| next.position);
        next.into_iter().chain(cut).min()
    }
}

impl Timeline {
    /// Writes one layer in place of those in `range`.
    pub(super) fn merge(
        self: &Arc<Self>,
        lane: LaneKind,
        range: Range<usize>,
        children: &[Child],
        pace: &mut Pace<'_>,
    ) -> Result<Merged> {
        let lane_files = self.lane_files();
        let number = self.take_position();
        let (inputs, oldest) = {
            let layers = &read(&self.lane(lane).state).layers;
            (layers[range.clone()].to_vec(), range.end == layers.len())
        };
        let id = LayerId { timeline: self.id(), lane, number };
        let metadata = if range.start == 0 { inputs[0].metadata()? } else { Vec::new() };
        let covered = (inputs[inputs.len() - 1].from(), inputs[0].to());
        let samples = sample(&inputs);
        let mut writer =
            LayerWriter::begin(lane_files.disk(), lane_files.store(), id, covered, &samples)?;
        if let Err(error) = self.merge_into(&mut writer, (&inputs, oldest), children, pace) {
            writer.discard();
            return Err(error);
        }
        // What was dropped because of a truncation or removal must not come back without its pages.
        if let Err(error) = self.sync_and_wait() {
            writer.discard();
            return Err(error);
        }
        writer.finish(&metadata)?;
        let layer = Arc::new(Layer::open(lane_files.disk(), lane_files.store(), id)?);
        Ok(Merged { layer, replaces: inputs.iter().map(|layer| layer.id().number).collect() })
    }

    fn merge_into(
        &self,
        writer: &mut LayerWriter<'_>,
        (layers, oldest): (&[Arc<Layer>], bool),
        children: &[Child],
        pace: &mut Pace<'_>,
    ) -> Result<()> {
        // Oldest first, so that the versions of a block come in order.
        let mut inputs: Vec<_> =
            layers.iter().rev().map(|layer| Input::of(layer, layer.scan())).collect();
        let mut fate = Fate::default();
        let mut page = vec![0; PAGE_BYTES];
        while let Some(versions) = next_block(&mut inputs)? {
            pace((versions.len() * ENTRY_BYTES) as u64)?;
            let inode = versions[0].0.inode;
            if fate.inode != inode {
                fate = self.fate(writer.lane(), inode, oldest);
            }
            let block = versions[0].0.block;
            let covered = if fate.are_old(&versions) {
                children::covered(children, inode, block)?
            } else {
                Vec::new()
            };
            for (entry, nth) in fate.kept(&versions, &covered) {
                let key = (entry.inode, entry.block, entry.position);
                if entry.page.is_none() {
                    writer.add(key, None)?;
                    continue;
                }
                inputs[nth].read(&entry, &mut page)?;
                writer.add(key, Some(&page))?;
                pace(PAGE_BYTES as u64)?;
            }
        }
        Ok(())
    }

    pub(super) fn fate(&self, lane: LaneKind, inode: u64, oldest: bool) -> Fate {
        let state = read(&self.lane(lane).state);
        let (forgotten, cuts) = (state.index.forgot(inode), state.index.cuts(inode).to_vec());
        let retained = state.index.retained().clone();
        Fate {
            inode,
            retained,
            forgotten,
            cuts,
            zeros_below: oldest && !state.index.inherits(inode),
        }
    }

    /// Lets readers turn to a merged layer that the catalog names now. Returns the layers it
    /// replaces.
    pub(super) fn turn_to_merged(&self, merged: Merged, record: LaneRecord) -> Vec<Arc<Layer>> {
        let mut state = write(&self.lane(merged.layer.id().lane).state);
        state.record = record;
        let range = merged.range(state.layers.iter().map(|layer| layer.id().number));
        let (newest, oldest) = (&state.layers[range.start], &state.layers[range.end - 1]);
        let name = merged.layer.id().path();
        assert_eq!(merged.layer.to(), newest.to(), "{name} ends elsewhere");
        assert_eq!(merged.layer.from(), oldest.from(), "{name} begins elsewhere");
        let replaced = state.layers.splice(range, [merged.layer]).collect();
        state.assert_sound();
        replaced
    }
}

/// Some of the pages of layers. What cannot be read may not be wanted in the end.
fn sample(layers: &[Arc<Layer>]) -> Vec<u8> {
    dictionary::sample(layers.iter().map(|layer| layer.entries()).sum(), |mut nth, page| {
        for layer in layers {
            let Some(beyond) = nth.checked_sub(layer.entries()) else {
                let entry = layer.entry(nth).ok().flatten().filter(|entry| entry.page.is_some());
                return entry.is_some_and(|entry| {
                    Input::of(layer, std::iter::empty()).read(&entry, page).is_ok()
                });
            };
            nth = beyond;
        }
        false
    })
}

impl<I: Iterator<Item = Result<LayerEntry>>> Input<I> {
    pub(super) fn read(&mut self, entry: &LayerEntry, page: &mut [u8]) -> Result<()> {
        let group = entry.page.map_or(0, |page| page.group);
        if self.group.as_ref().is_none_or(|(known, _)| *known != group) {
            let mut pages = Vec::with_capacity(GROUP_PAGES * PAGE_BYTES);
            let mut outcome = Ok(());
            self.layer.read_groups(group..group + 1, Access::InOrder, |_, found| match found {
                Ok(found) => pages.extend_from_slice(found),
                Err(error) => outcome = Err(error),
            })?;
            outcome?;
            self.group = Some((group, pages));
        }
        let pages = self.group.as_ref().map_or(&[][..], |(_, pages)| pages);
        self.layer.take_page(&Ok(pages), entry, page)
    }
}

/// All versions of the next block in the order of keys, oldest first, each with the number of its
/// input.
pub(super) fn next_block<I: Iterator<Item = Result<LayerEntry>>>(
    inputs: &mut [Input<I>],
) -> Result<Option<Vec<(LayerEntry, usize)>>> {
    let mut next: Option<(u64, u32)> = None;
    for input in &mut *inputs {
        if let Some(entry) = input.entries.next_if(Result::is_err) {
            entry?;
        }
        if let Some(Ok(entry)) = input.entries.peek() {
            let key = (entry.inode, entry.block);
            next = Some(next.map_or(key, |next| next.min(key)));
        }
    }
    let Some(next) = next else { return Ok(None) };
    let mut versions = Vec::new();
    for (nth, input) in inputs.iter_mut().enumerate() {
        let same = |entry: &Result<LayerEntry>| {
            entry.as_ref().is_ok_and(|entry| (entry.inode, entry.block) == next)
        };
        while let Some(Ok(entry)) = input.entries.next_if(same) {
            versions.push((entry, nth));
        }
    }
    if !versions.is_sorted_by(|(a, _), (b, _)| a.position < b.position) {
        let (inode, block) = next;
        return Err(Error::corrupt(format!(
            "versions of block {block} of inode {inode:#x} do not ascend from layer to layer"
        )));
    }
    Ok(Some(versions))
}

impl Store {
    /// Makes one layer of those in `range`, counted from the newest; true if it was done.
    pub fn merge(
        &self,
        id: TimelineId,
        lane: LaneKind,
        range: Range<usize>,
        pace: &mut Pace<'_>,
    ) -> Result<bool> {
        self.catalog().require()?;
        let slot = self.slot(id)?;
        let Some(timeline) = healthy(&slot) else { return Ok(false) };
        let layers = timeline.layers(lane);
        self.require_room(layers[range.clone()].iter().map(|layer| layer.bytes()).sum())?;
        let children = self.children(id, lane)?;
        let merged = timeline.merge(lane, range, &children, pace)?;
        let layer = merged.layer.id();
        if !self.still_live(&children) {
            // What one of them did not need, another may that was forked at the same position.
            self.remove_layer(layer);
            return Ok(false);
        }
        let mut replaced = Vec::new();
        let turn = |merged, record| replaced = timeline.turn_to_merged(merged, record);
        let done = self.publish_lane(&slot, &timeline, layer, merged, Merged::record, turn)?;
        replaced.iter().for_each(|layer| self.remove_layer(layer.id()));
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::sim::SimDisk;

    #[test]
    fn versions_that_do_not_ascend_from_layer_to_layer_are_refused() {
        let disk = SimDisk::default();
        let layers: Vec<Arc<Layer>> = (1..=2)
            .map(|number| {
                let id = LayerId { timeline: TimelineId(1), lane: LaneKind::Data, number };
                let mut writer = LayerWriter::begin(&disk, 5, id, (0, 10), &[]).unwrap();
                writer.add((9, 0, 5), None).unwrap();
                writer.finish(&[]).unwrap();
                Arc::new(Layer::open(&disk, 5, id).unwrap())
            })
            .collect();
        let mut inputs: Vec<_> =
            layers.iter().map(|layer| Input::of(layer, layer.scan())).collect();
        let error = next_block(&mut inputs).unwrap_err();
        assert!(error.detail.contains("do not ascend"), "{error}");
    }
}
