//! The mounts that this process sees, as `mountinfo` lists them (proc_pid_mountinfo(5)).

use std::path::{Path, PathBuf};

/// A mount.
#[derive(Debug, PartialEq, Eq)]
pub struct MountLine<'a> {
    /// Minor number of its device, which tells mounts of FUSE apart.
    pub minor: &'a str,
    /// The part of the file system that it shows.
    pub root: &'a str,
    /// Where it is.
    pub at: PathBuf,
    /// Kind of the file system.
    pub kind: &'a str,
    options: &'a str,
}

impl MountLine<'_> {
    /// Whether the file system has this option.
    pub fn has_option(&self, option: &str) -> bool {
        self.options.split(',').any(|other| other == option)
    }

    /// Where something is that has this path from the root of the file system.
    pub fn place(&self, path: &str) -> PathBuf {
        let within = Path::new(path).strip_prefix(self.root).unwrap_or(Path::new(""));
        self.at.join(within.strip_prefix("/").unwrap_or(within))
    }
}

/// All mounts in a list. Lines that are none are left out.
pub fn parse(list: &str) -> impl Iterator<Item = MountLine<'_>> {
    list.lines().filter_map(|line| {
        let (place, file_system) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(2);
        let (_, minor) = place.next()?.split_once(':')?;
        let (root, at) = (place.next()?, PathBuf::from(unescaped(place.next()?)));
        let mut file_system = file_system.split(' ');
        Some(MountLine { minor, root, at, kind: file_system.next()?, options: file_system.nth(1)? })
    })
}

/// Of a blank, a tab and a backslash in a path the list has the octal code.
fn unescaped(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let line =
            "60 23 0:51 /part /var/my\\040data/mount rw,nosuid - fuse coppice rw,user_id=0\n";
        let mount = parse(line).next().unwrap();
        assert_eq!((mount.minor, mount.kind), ("51", "fuse"));
        assert_eq!(mount.at, Path::new("/var/my data/mount"));
        assert!(mount.has_option("user_id=0") && !mount.has_option("user_id"));
        assert_eq!(mount.place("/part/a"), Path::new("/var/my data/mount/a"));
        assert_eq!(parse("nonsense\n\n1 2 3 - x\n").count(), 0);
    }
}
