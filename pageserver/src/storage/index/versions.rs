//! The versions of a key, and which of them somebody still sees.

use crate::storage::page::Position;

/// Positions at which somebody still reads: the fork positions of children, and marks. Sorted, each
/// as often as somebody reads there.
#[derive(Clone, Debug, Default)]
pub struct Retained(Vec<Position>);

impl Retained {
    /// Adds a point.
    pub fn add(&mut self, position: Position) {
        let at = self.0.partition_point(|point| *point <= position);
        self.0.insert(at, position);
    }

    /// Removes a point that was added once.
    pub fn remove(&mut self, position: Position) {
        if let Ok(at) = self.0.binary_search(&position) {
            self.0.remove(at);
        }
    }

    /// Whether some point but those `covered`, in order, sees a version of `from` that is replaced
    /// at `to`.
    pub(in crate::storage) fn sees_but(
        &self,
        covered: &[Position],
        from: Position,
        to: Position,
    ) -> bool {
        let points = &self.0[self.0.partition_point(|point| *point < from)..];
        let points = &points[..points.partition_point(|point| *point < to)];
        let covers = |point: Position| covered.iter().filter(|covered| **covered == point).count();
        points.chunk_by(|a, b| a == b).any(|same| same.len() > covers(same[0]))
    }

    /// Whether somebody reads just there.
    pub(in crate::storage) fn has(&self, position: Position) -> bool {
        self.0.binary_search(&position).is_ok()
    }

    /// Whether some point sees a version of `from` that is replaced at `to`.
    pub(super) fn sees(&self, from: Position, to: Position) -> bool {
        let at = self.0.partition_point(|point| *point < from);
        self.0.get(at).is_some_and(|point| *point < to)
    }
}

/// The versions of one key, oldest first. Most keys have one.
#[derive(Clone, Debug)]
pub(in crate::storage) enum Versions<T> {
    One(Position, T),
    Many(Vec<(Position, T)>),
}

impl<T> Versions<T> {
    pub(super) fn newest(&self) -> (Position, &T) {
        match self {
            Versions::One(position, value) => (*position, value),
            Versions::Many(list) => {
                let (position, value) = &list[list.len() - 1];
                (*position, value)
            }
        }
    }

    /// All versions, oldest first.
    pub(super) fn all(&self) -> impl Iterator<Item = (Position, &T)> {
        let (one, many) = match self {
            Versions::One(position, value) => (Some((*position, value)), None),
            Versions::Many(list) => {
                (None, Some(list.iter().map(|(position, value)| (*position, value))))
            }
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    /// The newest version, and the older ones that a retained point sees, oldest first.
    pub(in crate::storage) fn seen<'a>(
        &'a self,
        retained: &'a Retained,
    ) -> impl Iterator<Item = (Position, &'a T)> {
        let ends = self.all().skip(1).map(|(at, _)| Some(at)).chain([None]);
        let seen = |((at, _), end): &((Position, &T), Option<Position>)| {
            end.is_none_or(|end| retained.sees(*at, end))
        };
        self.all().zip(ends).filter(seen).map(|(version, _)| version)
    }

    /// Drops the versions that nobody sees any more.
    pub(super) fn trim(&mut self, retained: &Retained) {
        if let Versions::Many(list) = self {
            let ends: Vec<Position> = list.iter().skip(1).map(|(at, _)| *at).collect();
            let mut ends = ends.into_iter();
            list.retain(|(at, _)| ends.next().is_none_or(|end| retained.sees(*at, end)));
            assert!(!list.is_empty(), "the newest version went too");
            if list.len() == 1
                && let Some((at, value)) = list.pop()
            {
                *self = Versions::One(at, value);
            }
        }
    }

    pub(super) fn at(&self, position: Position) -> Option<(Position, &T)> {
        match self {
            Versions::One(at, value) => (*at <= position).then_some((*at, value)),
            Versions::Many(list) => {
                let (at, value) =
                    &list[list.partition_point(|(at, _)| *at <= position).checked_sub(1)?];
                Some((*at, value))
            }
        }
    }

    /// Adds a version; those before it go that no retained point sees.
    pub(super) fn put(&mut self, position: Position, value: T, retained: &Retained) {
        let (newest, _) = self.newest();
        assert!(newest <= position, "version {position} after {newest}");
        let keep = retained.sees(newest, position);
        match self {
            Versions::One(at, old) if !keep => (*at, *old) = (position, value),
            Versions::Many(list) if !keep => {
                list.pop();
                list.push((position, value));
            }
            Versions::Many(list) => {
                list.push((position, value));
                // Points may have gone since the older versions were kept for them.
                self.trim(retained);
            }
            Versions::One(..) => {
                let Versions::One(at, old) =
                    std::mem::replace(self, Versions::Many(Vec::with_capacity(2)))
                else {
                    unreachable!("matched above");
                };
                *self = Versions::Many(vec![(at, old), (position, value)]);
            }
        }
    }
}
