//! Machines' disks against a model: they are written, snapshots are taken, gone back to and deleted, the timeline gets thinner, and
//! copies are made and thrown away, in any order, and every state that is kept of any of them is what it was, byte for byte.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use vmm_core::backend::disk::{self, Buffers, Disk, OpenOptions, Request, Scratch};

use vmm_core::config::Boot;
use vmm_core::vm::DiskSwitch;

use crate::library::checkpoints::{ABOUT, Kind};
use crate::library::layers::GoOn;
use crate::library::{CloneWish, HostLimits, Library, LibraryError, Machine, NewDisk, NewMachine, Timeline, Timestamp};

const SIZE: usize = 1 << 20;
/// Machines at a time.
const MOST: usize = 4;

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

/// What is done to one of the machines, each chosen by a number.
#[derive(Debug, Clone)]
enum Step {
    Write {
        sector: usize,
        count: usize,
        byte: u8,
    },
    Take,
    /// Back to a snapshot or to a checkpoint of the timeline.
    Restore(usize),
    Delete {
        point: usize,
        running: bool,
    },
    Timeline(bool),
    /// The checkpoints of the timeline are so many hours old, in turn; then there are too many.
    Thin {
        hours: u64,
        running: bool,
    },
    Clone {
        of: Option<usize>,
        full: bool,
    },
    Fork,
    Trash,
}

fn step() -> impl Strategy<Value = Step> {
    let sectors = SIZE / 512;
    prop_oneof![
        8 => (0..sectors, 1..200usize, 1..=255u8)
            .prop_map(move |(sector, count, byte)| Step::Write { sector, count: count.min(sectors - sector), byte }),
        4 => Just(Step::Take),
        5 => (0..8usize).prop_map(Step::Restore),
        4 => (0..8usize, any::<bool>()).prop_map(|(point, running)| Step::Delete { point, running }),
        2 => any::<bool>().prop_map(Step::Timeline),
        2 => (1..200u64, any::<bool>()).prop_map(|(hours, running)| Step::Thin { hours, running }),
        3 => (proptest::option::of(0..8usize), any::<bool>()).prop_map(|(of, full)| Step::Clone { of, full }),
        2 => Just(Step::Fork),
        1 => Just(Step::Trash),
    ]
}

fn top(machine: &Machine) -> std::path::PathBuf {
    machine.resolve(&machine.config.disks[0].path)
}

/// A machine, and what its disk holds now and at each point that is kept, by id.
struct Modelled {
    machine: Machine,
    now: Vec<u8>,
    kept: Vec<(String, Vec<u8>)>,
}

impl Modelled {
    fn point(&self, number: usize) -> Option<(String, Vec<u8>)> {
        self.kept.get(number % self.kept.len().max(1)).cloned()
    }

    /// What its points are by now: those that are new hold what it held before, those that are gone may be.
    fn look_at_points(&mut self, before: &[u8]) {
        let points = [self.machine.snapshots().unwrap(), self.machine.timeline_points().unwrap()].concat();
        self.kept.retain(|(id, _)| points.iter().any(|point| point.id == *id));
        for point in points {
            if !self.kept.iter().any(|(id, _)| *id == point.id) {
                self.kept.push((point.id, before.to_vec()));
            }
        }
    }

    fn restore(&mut self, id: &str, bytes: &[u8]) {
        self.machine.restore_snapshot(id, false).unwrap();
        let before = std::mem::replace(&mut self.now, bytes.to_vec());
        self.look_at_points(&before);
    }

    /// Does something that may happen while it runs, with a guest that writes before and meanwhile where it does.
    fn while_it_runs(&mut self, running: bool, act: impl FnOnce(&mut Machine, Option<GoOn<'_>>)) {
        let image = std::cell::RefCell::new(top(&self.machine));
        let now = std::cell::RefCell::new(std::mem::take(&mut self.now));
        let guest_writes = |byte: u8| {
            write(&image.borrow(), 8192, &[byte; 1536]);
            now.borrow_mut()[8192..9728].fill(byte);
        };
        let go_on = |switches: Vec<DiskSwitch>| {
            guest_writes(0xd1);
            for DiskSwitch { disk: _, path, onto } in switches {
                if let Some((below, format)) = onto {
                    disk::rebase_header(&path, Some((&below, format))).unwrap();
                }
                *image.borrow_mut() = path;
            }
            guest_writes(0xd2);
            Ok(())
        };
        act(&mut self.machine, if running { Some(&go_on) } else { None });
        if running {
            guest_writes(0xd3);
        }
        self.now = now.into_inner();
    }
}

/// The machines never know of one another: what is done to one changes that alone.
fn all_are_what_they_were(library: &Library, all: &[Modelled]) -> Result<(), TestCaseError> {
    for one in all {
        prop_assert!(read(&top(&one.machine)) == one.now, "{}", one.machine.name);
        // What is written down is what is in hand.
        prop_assert_eq!(&library.load(&one.machine.name).unwrap(), &one.machine);
    }
    Ok(())
}

/// Few, for each takes a second; as many as PROPTEST_CASES says.
fn cases() -> ProptestConfig {
    let wanted = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() { wanted } else { ProptestConfig { cases: 16, ..wanted } }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn every_state_that_is_kept_of_any_copy_is_what_it_was(
        steps in proptest::collection::vec((0..4usize, step()), 1..40)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (library, machine) = machine_with_disk(dir.path());
        let mut all = vec![Modelled { machine, now: vec![0; SIZE], kept: Vec::new() }];
        for (number, (which, step)) in steps.into_iter().enumerate() {
            let count = all.len();
            let one = &mut all[which % count];
            let (mut made, mut gone) = (None, false);
            match step {
                Step::Write { sector, count, byte } => {
                    let range = sector * 512..(sector + count) * 512;
                    write(&top(&one.machine), range.start, &vec![byte; range.len()]);
                    one.now[range].fill(byte);
                }
                Step::Take => {
                    let id = one.machine.take_snapshot(&format!("s{number}"), "").unwrap();
                    one.kept.push((id, one.now.clone()));
                }
                Step::Restore(point) => {
                    if let Some((id, bytes)) = one.point(point) {
                        one.restore(&id, &bytes);
                    }
                }
                Step::Delete { point, running } => {
                    if let Some((id, _)) = one.point(point) {
                        one.while_it_runs(running, |machine, go_on| {
                            machine.delete_snapshot(&id, go_on, &mut |_, _| true).unwrap();
                        });
                        one.kept.retain(|(other, _)| *other != id);
                    }
                }
                Step::Timeline(on) => {
                    one.machine.timeline = on.then(Timeline::default);
                    library.save(&one.machine).unwrap();
                }
                Step::Thin { hours, running } => {
                    let now = Timestamp::now();
                    let points = one.machine.timeline_points().unwrap();
                    for (age, point) in points.iter().rev().enumerate() {
                        let mut saved = one.machine.snapshot(&point.id).unwrap();
                        saved.about.created = Timestamp(now.0 - age as u64 * hours * 3600);
                        one.machine.checkpoints().describe(&saved.id, &saved.about).unwrap();
                    }
                    let others = one.machine.snapshots().unwrap().len();
                    one.while_it_runs(running, |machine, go_on| {
                        machine.thin_timeline(Timeline::default(), go_on, &mut |_, _| true).unwrap();
                    });
                    let left = one.machine.timeline_points().unwrap();
                    prop_assert_eq!(left.last().map(|point| &point.id), points.last().map(|point| &point.id));
                    prop_assert_eq!(one.machine.snapshots().unwrap().len(), others);
                    one.kept.retain(|(id, _)| {
                        !points.iter().any(|point| point.id == *id) || left.iter().any(|point| point.id == *id)
                    });
                }
                Step::Clone { of, full } if count < MOST => {
                    let of = of.and_then(|point| one.point(point));
                    let (id, bytes) = of.map_or_else(|| (None, one.now.clone()), |(id, bytes)| (Some(id), bytes));
                    let wish = CloneWish { of: id, name: format!("c{number}"), full };
                    let machine = library.clone_machine(&mut one.machine, &wish, &mut |_, _| true).unwrap();
                    made = Some(Modelled { machine, now: bytes, kept: Vec::new() });
                }
                // As the process does that runs the machine.
                Step::Fork if count < MOST => {
                    let overlays = one.machine.make_overlays(&crate::library::Checkpoints::new_id().unwrap()).unwrap();
                    let changed = one.machine.with_overlays(&overlays);
                    changed.write().unwrap();
                    let machine = library.make_fork(&one.machine, &format!("f{number}")).unwrap();
                    one.machine = changed;
                    made = Some(Modelled { machine, now: one.now.clone(), kept: Vec::new() });
                }
                Step::Trash if count > 1 => {
                    library.trash(&one.machine.name).unwrap();
                    library.empty_trash().unwrap();
                    gone = true;
                }
                Step::Clone { .. } | Step::Fork | Step::Trash => {}
            }
            all.extend(made);
            if gone {
                all.remove(which % count);
            }
            all_are_what_they_were(&library, &all)?;
        }
        for one in &mut all {
            for (id, bytes) in one.kept.clone() {
                one.restore(&id, &bytes);
                prop_assert!(read(&top(&one.machine)) == bytes, "{}", id);
            }
        }
        all_are_what_they_were(&library, &all)?;
        // Each stands without the others; and once nobody shares anything, and nothing is kept, each is one image.
        while let Some(mut last) = all.pop() {
            let ids: Vec<String> = last.kept.drain(..).map(|(id, _)| id).collect();
            for id in ids {
                last.machine.delete_snapshot_at_rest(&id, &mut |_, _| true).unwrap();
            }
            prop_assert!(read(&top(&last.machine)) == last.now, "{}", last.machine.name);
            if all.is_empty() {
                let id = last.machine.take_snapshot("s", "").unwrap();
                last.machine.delete_snapshot_at_rest(&id, &mut |_, _| true).unwrap();
                prop_assert_eq!(std::fs::read_dir(last.machine.folder().join("disks")).unwrap().count(), 1);
                prop_assert!(read(&top(&last.machine)) == last.now);
            }
            library.trash(&last.machine.name).unwrap();
            library.empty_trash().unwrap();
            all_are_what_they_were(&library, &all)?;
        }
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

fn machine_with_disk(dir: &Path) -> (Library, Machine) {
    let library = Library::open(dir).unwrap();
    let mut new = NewMachine::with_defaults("a", &HostLimits::read(dir));
    (new.memory_mib, new.disks) = (64, vec![NewDisk::create(SIZE as u64)]);
    let machine = library.create(&new).unwrap();
    (library, machine)
}

#[test]
fn a_clone_that_is_given_up_leaves_nothing_and_the_machine_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (library, mut machine) = machine_with_disk(dir.path());
    write(&top(&machine), 0, &[7; 4096]);
    let before = (machine.clone(), std::fs::read_dir(machine.folder().join("disks")).unwrap().count());
    let wish = |name: &str, full| CloneWish { of: None, name: name.into(), full };
    let given_up = library.clone_machine(&mut machine, &wish("b", true), &mut |_, _| false).unwrap_err();
    assert!(matches!(given_up, LibraryError::Cancelled), "{given_up}");
    let taken = library.clone_machine(&mut machine, &wish("A", false), &mut |_, _| true).unwrap_err();
    assert!(matches!(taken, LibraryError::Exists(_)), "{taken}");
    assert_eq!((machine.clone(), std::fs::read_dir(machine.folder().join("disks")).unwrap().count()), before);
    assert_eq!(library.list().unwrap().len(), 1);
    let hidden = std::fs::read_dir(dir.path()).unwrap().flatten();
    assert!(!hidden.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(".copy")));
}

#[test]
fn what_a_killed_process_left_of_a_clone_is_swept_up_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let (library, mut machine) = machine_with_disk(dir.path());
    let left = dir.path().join(".copy-0123");
    std::fs::create_dir_all(left.join("disks")).unwrap();
    let wish = CloneWish { of: None, name: "b".into(), full: true };
    let clone = library.clone_machine(&mut machine, &wish, &mut |_, _| true).unwrap();
    assert!(!left.exists());
    assert_eq!((clone.name.as_str(), library.list().unwrap().len()), ("b", 2));
    assert_ne!(clone.id, machine.id);
}

#[test]
fn going_back_puts_the_present_on_the_timeline() {
    let dir = tempfile::tempdir().unwrap();
    let (library, mut machine) = machine_with_disk(dir.path());
    write(&top(&machine), 0, &[1; 512]);
    machine.take_snapshot("s", "").unwrap();
    write(&top(&machine), 0, &[2; 512]);
    machine.timeline = Some(Timeline::default());
    library.save(&machine).unwrap();
    machine.restore_snapshot("s", false).unwrap();
    assert_eq!((read(&top(&machine))[0], machine.timeline), (1, Some(Timeline::default())));
    let [point] = &machine.timeline_points().unwrap()[..] else { panic!("one point") };
    assert!(!point.running && point.name.is_empty());
    // It is no snapshot, and is meant by the beginning of its id.
    assert_eq!(machine.snapshots().unwrap().len(), 1);
    assert!(machine.snapshots().unwrap()[0].is_present);
    assert!(machine.restore_snapshot(&point.id[..3], false).is_err());
    machine.restore_snapshot(&point.id[..8], false).unwrap();
    assert_eq!(read(&top(&machine))[0], 2);
    // A snapshot that comes after a checkpoint is shown after the snapshot before that.
    machine.take_snapshot("t", "").unwrap();
    let snapshots = machine.snapshots().unwrap();
    let named = |name: &str| snapshots.iter().find(|snapshot| snapshot.name == name).unwrap();
    assert_eq!(named("t").parent.as_ref(), Some(&named("s").id));
}

#[test]
fn snapshots_of_one_second_are_in_the_order_in_which_they_came() {
    let dir = tempfile::tempdir().unwrap();
    let (_, mut machine) = machine_with_disk(dir.path());
    let names = ["e", "d", "c", "b", "a"];
    for name in names {
        machine.take_snapshot(name, "").unwrap();
    }
    let listed = machine.snapshots().unwrap();
    assert_eq!(listed.iter().map(|snapshot| snapshot.name.as_str()).collect::<Vec<_>>(), names);
}

#[test]
fn who_takes_a_machine_has_it_as_the_last_one_left_it() {
    let dir = tempfile::tempdir().unwrap();
    let (library, mut machine) = machine_with_disk(dir.path());
    let mut stale = library.load("a").unwrap();
    machine.take_snapshot("s", "").unwrap();
    let lock = stale.lock().unwrap();
    assert_eq!(stale, machine);
    // What a snapshot has is not what it writes to.
    assert_ne!(top(&stale), stale.resolve(&stale.snapshot("s").unwrap().machine(&stale).unwrap().config.disks[0].path));
    drop(lock);
}

#[test]
fn a_difference_tells_what_was_written_since_and_which_settings_are_others() {
    let dir = tempfile::tempdir().unwrap();
    let (library, mut machine) = machine_with_disk(dir.path());
    machine.take_snapshot("s", "").unwrap();
    let before = machine.diff("s", None).unwrap();
    assert!(before.settings.is_empty() && before.memory.is_none(), "{before:?}");
    write(&top(&machine), 0, &[1; 256 << 10]);
    machine.config.cpus += 1;
    library.save(&machine).unwrap();
    machine.take_snapshot("t", "").unwrap();
    for after in [Some("t"), None] {
        let diff = machine.diff("s", after).unwrap();
        assert_eq!(diff.settings.iter().map(|setting| setting.field.as_str()).collect::<Vec<_>>(), ["cpus"]);
        assert!(diff.disks[&0] >= before.disks[&0] + (256 << 10) && diff.disks[&0] < 1 << 20, "{diff:?}");
    }
    assert!(machine.diff("s", Some("u")).is_err());
}

#[test]
fn a_timeline_without_space_keeps_its_newest_point() {
    let dir = tempfile::tempdir().unwrap();
    let (library, mut machine) = machine_with_disk(dir.path());
    machine.timeline = Some(Timeline { minutes: 1, space_mib: 64 });
    library.save(&machine).unwrap();
    machine.take_snapshot("s", "").unwrap();
    let mut bytes = std::collections::BTreeMap::new();
    for byte in 1..=3 {
        write(&top(&machine), 0, &[byte; 512]);
        machine.restore_snapshot("s", false).unwrap();
        let points = machine.timeline_points().unwrap();
        bytes.extend(
            points.into_iter().filter(|point| !bytes.contains_key(&point.id)).map(|p| (p.id, byte)).collect::<Vec<_>>(),
        );
    }
    assert_eq!(bytes.len(), 3);
    let newest = machine.timeline_points().unwrap().remove(2);
    machine.thin_timeline(Timeline { minutes: 1, space_mib: 0 }, None, &mut |_, _| true).unwrap();
    assert_eq!(machine.timeline_points().unwrap().iter().map(|p| &p.id).collect::<Vec<_>>(), [&newest.id]);
    assert_eq!(machine.snapshots().unwrap().len(), 1);
    machine.restore_snapshot(&newest.id, false).unwrap();
    assert_eq!(read(&top(&machine))[0], bytes[&newest.id]);
}

#[test]
fn a_run_without_saving_has_files_of_its_own_and_leaves_none() {
    let dir = tempfile::tempdir().unwrap();
    let (_, mut machine) = machine_with_disk(dir.path());
    write(&top(&machine), 0, &[1; 512]);
    let nvram = machine.folder().join("nvram.fd");
    machine.config.boot = Boot::Uefi { variables: Some("nvram.fd".into()), secure_boot: false, menu: false };
    std::fs::write(&nvram, "variables").unwrap();
    let unsaved = machine.unsaved().unwrap();
    let Boot::Uefi { variables: Some(variables), .. } = &unsaved.config.boot else { panic!("{unsaved:?}") };
    assert!(variables != &nvram && std::fs::read(variables).unwrap() == b"variables");
    let disk = &unsaved.config.disks[0].path;
    assert!(unsaved.tpm.is_dir() && read(disk)[0] == 1);
    write(disk, 0, &[2; 512]);
    assert_eq!((read(disk)[0], read(&top(&machine))[0]), (2, 1));
    // What a killed process left is no hindrance.
    std::mem::forget(unsaved);
    let unsaved = machine.unsaved().unwrap();
    assert_eq!(read(&unsaved.config.disks[0].path)[0], 1);
    drop(unsaved);
    assert!(!machine.folder().join("unsaved").exists());
}

#[test]
fn what_a_machine_with_a_timeline_was_suspended_in_stays_there_when_it_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let (_, mut machine) = machine_with_disk(dir.path());
    machine.timeline = Some(Timeline::default());
    write(&top(&machine), 0, &[1; 512]);
    let about = machine.about_now(Kind::Suspended).unwrap();
    let draft = machine.checkpoints().store().begin("aaaa").unwrap();
    draft.add(ABOUT, &about.text()).unwrap();
    draft.write_off(&machine.resolved()).unwrap();
    assert_eq!(machine.goes_on_from().unwrap().as_deref(), Some("aaaa"));
    machine.keep_suspended().unwrap();
    assert_eq!((machine.goes_on_from().unwrap(), machine.present.as_deref()), (None, Some("aaaa")));
    // What is written from now on is not written to it.
    write(&top(&machine), 0, &[2; 512]);
    let [point] = &machine.timeline_points().unwrap()[..] else { panic!("one point") };
    machine.restore_snapshot(&point.id, true).unwrap();
    assert_eq!(read(&top(&machine))[0], 1);
}
