//! Random operations on a store, held against a plain model.

use super::*;

/// A file name, and what it holds by the model.
type Model = BTreeMap<String, Vec<u8>>;

struct World {
    disk: SimDisk,
    store: Store,
    branches: Vec<(TimelineId, Model)>,
    random: Random,
}

impl World {
    fn step(&mut self) {
        let nth = usize::try_from(self.random.below(self.branches.len() as u64)).unwrap();
        let id = self.branches[nth].0;
        let main = tree(&self.store, id);
        let name = format!("f{}", self.random.below(4));
        let offset = self.random.below(40_000);
        let length = usize::try_from(self.random.below(20_000)).unwrap();
        let fill = u8::try_from(self.random.below(3)).unwrap();
        let room = self.branches.len() < 12;
        let count = self.branches.len();
        let model = &mut self.branches[nth].1;
        match self.random.below(14) {
            0 if room => {
                let copy = model.clone();
                let name = format!("b{count}");
                let (child, _) = self.store.fork(id, |timeline| named(&name, timeline)).unwrap();
                self.branches.push((child, copy));
            }
            11 if count > 6 => {
                let (gone, _) = self.branches.remove(count - 1);
                let name = format!("b{}", count - 1);
                let update = Update::default().remove::<BranchRecord>(&name);
                let freed = self.store.publish(update).unwrap();
                assert_eq!(freed.contains(&gone), !self.has_children(gone));
                self.store.free(&freed);
            }
            1 if model.remove(&name).is_some() => {
                main.remove(ROOT_INODE, name.as_bytes(), false, 0).unwrap()
            }
            2 => {
                if let Ok((inode, _)) = main.lookup(ROOT_INODE, name.as_bytes()) {
                    let wanted = Wanted { size: Some(offset), ..Wanted::default() };
                    main.set_attributes(inode, &wanted).unwrap();
                    model.entry(name).or_default().resize(usize::try_from(offset).unwrap(), 0);
                }
            }
            3 => {
                let other = format!("f{}", self.random.below(4));
                if other != name && model.contains_key(&name) {
                    let (from, to) =
                        ((ROOT_INODE, name.as_bytes()), (ROOT_INODE, other.as_bytes()));
                    main.rename(from, to, false, 0).unwrap();
                    let moved = model.remove(&name).unwrap();
                    model.insert(other, moved);
                }
            }
            4 => drop(self.store.seal(id, LaneKind::Data, &mut |_| Ok(())).unwrap()),
            5 => {
                let count =
                    self.store.catalog().timeline(id).unwrap().lanes.data.layers.len() as u64;
                if count >= 2 {
                    let start = self.random.below(count - 1);
                    let end = start + 2 + self.random.below(count - start - 1);
                    let range = usize::try_from(start).unwrap()..usize::try_from(end).unwrap();
                    assert!(self.store.merge(id, LaneKind::Data, range, &mut |_| Ok(())).unwrap());
                }
            }
            _ => {
                let inode = match main.lookup(ROOT_INODE, name.as_bytes()) {
                    Ok((inode, _)) => inode,
                    Err(_) => make(&main, name.as_bytes()),
                };
                main.write(inode, offset, &vec![fill; length]).unwrap();
                let file = model.entry(name).or_default();
                let (start, end) =
                    (usize::try_from(offset).unwrap(), usize::try_from(offset).unwrap() + length);
                file.resize(file.len().max(end), 0);
                file[start..end].fill(fill);
            }
        }
    }

    fn has_children(&self, id: TimelineId) -> bool {
        !self.store.catalog().forks(id).is_empty()
    }

    fn compare(&self, when: &str) {
        for (id, model) in &self.branches {
            let tree = tree(&self.store, *id);
            let names: Vec<String> = tree
                .list(ROOT_INODE)
                .into_iter()
                .map(|(_, name, _)| String::from_utf8(name).unwrap())
                .collect();
            let mut sorted = names.clone();
            sorted.sort();
            assert_eq!(sorted, model.keys().cloned().collect::<Vec<_>>(), "{when}: names of {id}");
            for (name, expected) in model {
                let found = contents(&tree, name.as_bytes()).unwrap();
                assert!(
                    found == *expected,
                    "{when}: {name} of {id} differs ({} bytes)",
                    expected.len()
                );
            }
        }
    }
}

#[test]
fn random_operations_agree_with_a_plain_model_across_forks_and_crashes() {
    for seed in 1..=12 {
        let disk = SimDisk::default();
        let (store, id) = new_store(&disk);
        let mut world =
            World { disk, store, branches: vec![(id, Model::new())], random: Random(seed * 7919) };
        for round in 0..8 {
            for _ in 0..60 {
                world.step();
            }
            let when = format!("seed {seed}, round {round}");
            world.compare(&when);
            // What is synced must be there after a crash that loses whatever else it likes.
            for (id, _) in &world.branches {
                world.store.timeline(*id).unwrap().sync_and_wait().unwrap();
            }
            let unsynced =
                if round % 2 == 0 { Unsynced::Lost } else { Unsynced::Mixed(seed + round) };
            world.disk = world.disk.after_power_loss(unsynced);
            world.store = open(&world.disk).unwrap();
            world.compare(&format!("{when}, after a crash"));
        }
    }
}
