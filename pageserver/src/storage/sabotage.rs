//! Deliberate defects, to see that the simulation finds them.
//!
//! They exist only in a build with the feature `sabotage`; `COPPICE_SABOTAGE` chooses one. In any
//! other build `active` is false at compile time.

/// A place where something is left out that must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// Lane files are not synced.
    LaneSync,
    /// The directory of lane files is not.
    DirectorySync,
    /// A layer gets its name before it is synced.
    LayerSync,
    /// Pages are not checked when they are read.
    PageChecksum,
    /// A fork does not sync the parent's lanes.
    ForkSync,
    /// A sync counts for what was appended while it ran.
    SyncTarget,
    /// A lane that ends before what was synced is taken for one that a crash cut.
    LaneLoss,
    /// The catalog is not synced.
    CatalogSync,
    /// A catalog that has gone back is taken for what it was.
    CatalogWitness,
    /// What is found at a start is read, and not synced.
    RecoverySync,
}

impl Defect {
    /// All of them, with the names that `COPPICE_SABOTAGE` knows.
    pub const ALL: [(&str, Self); 10] = [
        ("lane-sync", Self::LaneSync),
        ("directory-sync", Self::DirectorySync),
        ("layer-sync", Self::LayerSync),
        ("page-checksum", Self::PageChecksum),
        ("fork-sync", Self::ForkSync),
        ("sync-target", Self::SyncTarget),
        ("lane-loss", Self::LaneLoss),
        ("catalog-sync", Self::CatalogSync),
        ("catalog-witness", Self::CatalogWitness),
        ("recovery-sync", Self::RecoverySync),
    ];
}

/// Whether this build has the defect.
#[cfg(not(feature = "sabotage"))]
pub(super) const fn active(_: Defect) -> bool {
    false
}

/// Whether this build has the defect.
#[cfg(feature = "sabotage")]
pub(super) fn active(defect: Defect) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<Defect>> = std::sync::OnceLock::new();
    let chosen = || {
        let name = std::env::var("COPPICE_SABOTAGE").ok()?;
        Defect::ALL.iter().find(|(known, _)| *known == name).map(|(_, defect)| *defect)
    };
    *CHOSEN.get_or_init(chosen) == Some(defect)
}
