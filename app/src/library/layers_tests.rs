//! A machine's disks against a model: it is written, snapshots are taken, gone back to and deleted in any order, and every
//! state that is kept is what it was, byte for byte.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use vmm_core::backend::disk::{self, Buffers, Disk, OpenOptions, Request, Scratch};

use crate::library::{HostLimits, Library, Machine, NewDisk, NewMachine};

const SIZE: usize = 1 << 20;

fn open(path: &Path, readonly: bool) -> Box<dyn Disk> {
    disk::open(path, OpenOptions { readonly, direct: false }).unwrap()
}

fn done(disk: &mut Box<dyn Disk>, request: Request) {
    disk.submit(0, request);
    disk.drain();
    disk.completed().unwrap().result.unwrap();
}

fn read(path: &Path) -> Vec<u8> {
    let mut disk = open(path, true);
    let scratch = Arc::new(Scratch::new(SIZE));
    let buffers = Buffers::own(&scratch, SIZE);
    done(&mut disk, Request::Read { offset: 0, buffers });
    let mut bytes = vec![0; SIZE];
    Buffers::own(&scratch, SIZE).copy_to(&mut bytes);
    bytes
}

fn write(path: &Path, offset: usize, bytes: &[u8]) {
    let mut disk = open(path, false);
    let scratch = Arc::new(Scratch::new(bytes.len()));
    let mut buffers = Buffers::own(&scratch, bytes.len());
    buffers.copy_from(bytes);
    let buffers = Buffers::own(&scratch, bytes.len());
    done(&mut disk, Request::Write { offset: offset as u64, buffers, durable: false });
    disk.settle().unwrap();
}

#[derive(Debug, Clone)]
enum Step {
    Write { sector: usize, count: usize, byte: u8 },
    Take,
    Restore(usize),
    Delete(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let sectors = SIZE / 512;
    prop_oneof![
        4 => (0..sectors, 1..200usize, 1..=255u8)
            .prop_map(move |(sector, count, byte)| Step::Write { sector, count: count.min(sectors - sector), byte }),
        3 => Just(Step::Take),
        2 => (0..6usize).prop_map(Step::Restore),
        2 => (0..6usize).prop_map(Step::Delete),
    ]
}

fn top(machine: &Machine) -> std::path::PathBuf {
    machine.resolve(&machine.config.disks[0].path)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn every_snapshot_that_is_kept_is_what_it_was(steps in proptest::collection::vec(step(), 1..20)) {
        let dir = tempfile::tempdir().unwrap();
        let library = Library::open(dir.path()).unwrap();
        let mut new = NewMachine::with_defaults("a", &HostLimits::read(dir.path()));
        (new.memory_mib, new.disks) = (64, vec![NewDisk::create(SIZE as u64)]);
        let mut machine = library.create(&new).unwrap();
        let mut model = vec![0; SIZE];
        let mut kept: Vec<(String, Vec<u8>)> = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Write { sector, count, byte } => {
                    let range = sector * 512..(sector + count) * 512;
                    write(&top(&machine), range.start, &vec![byte; range.len()]);
                    model[range].fill(byte);
                }
                Step::Take => {
                    let name = format!("s{number}");
                    machine.take_snapshot(&name, "").unwrap();
                    kept.push((name, model.clone()));
                }
                Step::Restore(i) => {
                    if let Some((name, bytes)) = kept.get(i) {
                        machine.restore_snapshot(name).unwrap();
                        model.clone_from(bytes);
                    }
                }
                Step::Delete(i) => {
                    if i < kept.len() {
                        machine.delete_snapshot_at_rest(&kept.remove(i).0, &mut |_, _| true).unwrap();
                    }
                }
            }
            prop_assert!(read(&top(&machine)) == model);
            // What is written down is what is in hand.
            prop_assert_eq!(&library.load("a").unwrap(), &machine);
        }
        for (name, bytes) in &kept {
            machine.restore_snapshot(name).unwrap();
            prop_assert!(&read(&top(&machine)) == bytes, "{}", name);
        }
        for (name, _) in kept {
            machine.delete_snapshot_at_rest(&name, &mut |_, _| true).unwrap();
        }
        let left = std::fs::read_dir(machine.folder().join("disks")).unwrap().count();
        prop_assert_eq!(left, 1, "all is one image again");
    }
}

#[test]
fn a_disk_outside_of_the_folder_is_refused_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::open(dir.path().join("machines")).unwrap();
    let image = dir.path().join("other.img");
    std::fs::write(&image, [0; 4096]).unwrap();
    let mut new = NewMachine::with_defaults("a", &HostLimits::read(dir.path()));
    let existing = NewDisk::Existing { path: image, readonly: false, bus: Default::default() };
    (new.memory_mib, new.disks) = (64, vec![NewDisk::create(1 << 20), existing]);
    let mut machine = library.create(&new).unwrap();
    let before = machine.clone();
    let error = machine.take_snapshot("s", "").unwrap_err().to_string();
    assert!(error.contains("outside"), "{error}");
    assert_eq!(machine, before);
    assert!(machine.snapshots().unwrap().is_empty());
    assert_eq!(std::fs::read_dir(machine.folder().join("disks")).unwrap().count(), 1);
}
