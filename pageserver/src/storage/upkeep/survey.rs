//! What a lane's layers hold for whom: for the head and for forks, for marks alone, or for nobody.
//!
//! Only indexes are read, no pages. A page counts as the average of its layer, so the sums are
//! those of the files.

use crate::error::Result;
use crate::storage::index::versions::Retained;
use crate::storage::layer::format::ENTRY_BYTES;
use crate::storage::page::{LaneKind, Position};
use crate::storage::timeline::Timeline;
use crate::storage::upkeep::children::{self, Child};
use crate::storage::upkeep::merge::{Fate, Input, next_block};
use crate::storage::upkeep::pace::Pace;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a lane's layers hold for others than the head and forks, in bytes.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// For marks alone, by the position up to which they have to go for it to be for nobody.
    pub(super) history: BTreeMap<Position, u64>,
    /// For nobody.
    pub(super) garbage: u64,
}

impl Survey {
    pub(super) fn add(&mut self, other: Survey) {
        self.garbage += other.garbage;
        other
            .history
            .into_iter()
            .for_each(|(end, bytes)| *self.history.entry(end).or_default() += bytes);
    }

    /// The position before which marks have to go so that history takes at most `limit` bytes; 0 if
    /// it does.
    pub(super) fn cutoff(&self, limit: u64) -> Position {
        let mut kept = 0;
        for (end, bytes) in self.history.iter().rev() {
            kept += bytes;
            if kept > limit {
                return *end;
            }
        }
        0
    }
}

impl Timeline {
    /// Looks at all layers of a lane, of which `forks` are where children were forked, and
    /// `children` some of these.
    pub(super) fn survey(
        self: &Arc<Self>,
        lane: LaneKind,
        forks: &Retained,
        children: &[Child],
        pace: &mut Pace<'_>,
    ) -> Result<Survey> {
        let layers = self.layers(lane);
        let share: Vec<u64> =
            layers.iter().rev().map(|layer| layer.bytes() / layer.entries().max(1)).collect();
        let mut inputs: Vec<_> =
            layers.iter().rev().map(|layer| Input::of(layer, layer.scan())).collect();
        let (mut fate, mut of_forks, mut survey) =
            (Fate::default(), Fate::default(), Survey::default());
        while let Some(versions) = next_block(&mut inputs)? {
            pace((versions.len() * ENTRY_BYTES) as u64)?;
            let inode = versions[0].0.inode;
            if fate.inode != inode {
                fate = self.fate(lane, inode, true);
                of_forks = Fate { retained: forks.clone(), ..fate.clone() };
            }
            let block = versions[0].0.block;
            let covered = if fate.are_old(&versions) {
                children::covered(children, inode, block)?
            } else {
                Vec::new()
            };
            let kept = |fate: &Fate| -> Vec<Position> {
                fate.kept(&versions, &covered).iter().map(|(entry, _)| entry.position).collect()
            };
            let (seen, live) = (kept(&fate), kept(&of_forks));
            for (nth, (entry, input)) in versions.iter().enumerate() {
                let bytes = share[*input];
                if live.contains(&entry.position) {
                    continue;
                }
                if seen.contains(&entry.position) {
                    let end = fate.end(&versions, nth).unwrap_or(Position::MAX);
                    *survey.history.entry(end).or_default() += bytes;
                } else {
                    survey.garbage += bytes;
                }
            }
        }
        Ok(survey)
    }
}
