//! What to seal and which layers to merge: a pure function of a lane's shape.
//!
//! Layers are kept such that an older one is larger than all newer ones together, so there are few
//! of them and each page is rewritten a few times only.

use crate::locks::read;
use crate::storage::page::{LaneKind, Position};
use crate::storage::timeline::Timeline;
use std::ops::Range;

/// Layers that a busy lane may have of about the same size before they are merged.
const MAX_ALIKE: usize = 4;
/// Layers of a lane, whatever their sizes.
const MAX_LAYERS: usize = 8;
/// Layers that one merge reads. Where small ones piled up, because the server was busy or often
/// killed, they are merged in steps, and what one has done stays.
pub(super) const MAX_INPUTS: usize = 32;

/// Less is left where it is.
const MIN_GARBAGE_BYTES: u64 = 1 << 20;

/// What a lane looks like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Bytes appended to the log.
    pub log_bytes: u64,
    /// Whether nothing was appended for a while.
    pub quiet: bool,
    /// Bytes of the layers, newest first.
    pub layers: Vec<u64>,
    /// Of these, those that nobody needs, as far as is known.
    pub garbage: u64,
}

/// What to do with a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// All is well.
    Nothing,
    /// Make a layer of the log.
    Seal,
    /// Make one layer of these, counted from the newest.
    Merge(Range<usize>),
}

/// What a lane of this shape needs next, if its log may have `max_log_bytes` while it is written
/// to.
pub fn choose(shape: &Shape, max_log_bytes: u64) -> Plan {
    if shape.log_bytes > max_log_bytes || (shape.quiet && shape.log_bytes > 0) {
        return Plan::Seal;
    }
    let alike = alike(&shape.layers);
    if alike >= MAX_ALIKE || (shape.quiet && alike >= 2) {
        return merge(&shape.layers[..alike]);
    }
    if shape.layers.len() > MAX_LAYERS {
        return merge(&shape.layers[..alike.max(shape.layers.len() - MAX_LAYERS + 1)]);
    }
    let all: u64 = shape.layers.iter().sum();
    if shape.garbage > MIN_GARBAGE_BYTES && shape.garbage > all / 4 {
        return Plan::Merge(0..shape.layers.len());
    }
    Plan::Nothing
}

/// Of a lane's layers, how many of the newest are of about the same size.
fn alike(layers: &[u64]) -> usize {
    let (mut sum, mut alike) = (0, 0);
    for bytes in layers {
        if alike > 0 && *bytes > 2 * sum {
            break;
        }
        (sum, alike) = (sum + bytes, alike + 1);
    }
    alike
}

/// By how many times a lane's layers are more than the number at which they are merged.
pub(super) fn excess(layers: &[u64]) -> u64 {
    ((alike(layers) / MAX_ALIKE).max(layers.len() / MAX_LAYERS) as u64).saturating_sub(1)
}

/// Merges all of these, or, of too many, those that are smallest together: so each page is
/// rewritten a few times only.
fn merge(layers: &[u64]) -> Plan {
    assert!(!layers.is_empty(), "no layer is merged");
    let count = layers.len().min(MAX_INPUTS);
    let sum = |from: &usize| layers[*from..from + count].iter().sum::<u64>();
    // Of equal ones the oldest.
    let from = (0..=layers.len() - count).rev().min_by_key(sum).unwrap_or(0);
    Plan::Merge(from..from + count)
}

impl Timeline {
    /// What a lane looks like; it is quiet if its newest record is `before`.
    pub(in crate::storage) fn shape(&self, lane: LaneKind, before: Position) -> (Shape, Position) {
        let state = read(&self.lane(lane).state);
        let layers = state.record.layers.iter().map(|layer| layer.bytes).collect();
        let last = state.log.last();
        let log_bytes = if last == state.record.sealed { 0 } else { state.log.appended_bytes() };
        (Shape { log_bytes, quiet: last == before, layers, garbage: 0 }, last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 100;

    fn shape(log_bytes: u64, quiet: bool, layers: &[u64]) -> Shape {
        Shape { log_bytes, quiet, layers: layers.to_vec(), garbage: 0 }
    }

    #[test]
    fn a_busy_lane_is_left_alone_until_its_log_is_long() {
        assert_eq!(choose(&shape(LIMIT, false, &[]), LIMIT), Plan::Nothing);
        assert_eq!(choose(&shape(LIMIT + 1, false, &[1, 1]), LIMIT), Plan::Seal);
        assert_eq!(choose(&shape(1, true, &[]), LIMIT), Plan::Seal);
        assert_eq!(choose(&shape(0, true, &[5]), LIMIT), Plan::Nothing);
    }

    #[test]
    fn layers_of_like_size_are_merged_and_large_ones_left() {
        assert_eq!(choose(&shape(0, false, &[10, 10, 10]), LIMIT), Plan::Nothing);
        assert_eq!(choose(&shape(0, false, &[10, 10, 10, 10, 1000]), LIMIT), Plan::Merge(0..4));
        assert_eq!(choose(&shape(0, true, &[10, 15, 1000]), LIMIT), Plan::Merge(0..2));
        assert_eq!(choose(&shape(0, true, &[10, 1000]), LIMIT), Plan::Nothing);
        assert_eq!(choose(&shape(0, true, &[600, 1000]), LIMIT), Plan::Merge(0..2));
    }

    #[test]
    fn a_lane_is_rewritten_when_a_quarter_of_it_is_garbage() {
        let of = |garbage| Shape { garbage, ..shape(0, false, &[3 << 20, 50 << 20]) };
        assert_eq!(choose(&of(13 << 20), LIMIT), Plan::Nothing);
        assert_eq!(choose(&of(14 << 20), LIMIT), Plan::Merge(0..2));
        let small = Shape { garbage: 1 << 20, ..shape(0, false, &[1 << 20]) };
        assert_eq!(choose(&small, LIMIT), Plan::Nothing);
        assert_eq!(
            choose(&Shape { garbage: 2 << 20, ..shape(0, true, &[3 << 20]) }, LIMIT),
            Plan::Merge(0..1)
        );
    }

    #[test]
    fn there_are_never_many_layers() {
        let growing: Vec<u64> = (0..12).map(|nth| 3_u64.pow(nth) * 10).collect();
        assert_eq!(choose(&shape(0, false, &growing), LIMIT), Plan::Merge(0..5));
        // Whatever is appended, and however it is sealed, the number of layers stays bounded.
        let (mut layers, mut seed) = (Vec::<u64>::new(), 1_u64);
        for _ in 0..10_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            layers.insert(0, 1 + (seed >> 33) % 1000);
            while let Plan::Merge(range) = choose(&shape(0, false, &layers), LIMIT) {
                assert!(range.len() >= 2 && range.start == 0, "{range:?} of {layers:?}");
                let sum = layers[range.clone()].iter().sum();
                layers.splice(range, [sum]);
            }
            assert!(layers.len() <= MAX_LAYERS, "{layers:?}");
        }
    }

    #[test]
    fn layers_that_piled_up_are_merged_a_few_at_a_time() {
        let mut layers: Vec<u64> = (0..8_000).map(|nth| 100 + nth * 37 % 100).collect();
        let (all, mut rewritten): (u64, u64) = (layers.iter().sum(), 0);
        while let Plan::Merge(range) = choose(&shape(0, false, &layers), LIMIT) {
            assert!((2..=MAX_INPUTS).contains(&range.len()), "{range:?}");
            let sum = layers[range.clone()].iter().sum();
            rewritten += sum;
            layers.splice(range, [sum]);
        }
        assert!(layers.len() <= MAX_LAYERS, "{layers:?}");
        assert!(rewritten <= 5 * all, "{rewritten} bytes were written for {all}");
    }
}
