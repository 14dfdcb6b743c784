use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;
use crate::base::InlineExecutor;
use crate::testkit::FakeSlots;

const BASE: u64 = 0xffc0_0000;
const SIZE: usize = 4 * BLOCK;

struct Rig {
    flash: Pflash,
    slots: FakeSlots,
    executor: InlineExecutor,
    problems: Arc<AtomicUsize>,
    path: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nvram.fd");
    let nvram = Nvram::open(&path, &[0xa5; SIZE]).unwrap();
    let (slots, executor) = (FakeSlots::default(), InlineExecutor::new().unwrap());
    let problems = Arc::new(AtomicUsize::new(0));
    let count = problems.clone();
    let complain: ProblemSink = Arc::new(move |_, _| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let flash = Pflash::new(BASE, nvram, Arc::new(slots.clone()), Arc::new(executor.clone()), complain).unwrap();
    flash.resume();
    Rig { flash, slots, executor, problems, path, _dir: dir }
}

impl Rig {
    /// An access of the guest's: the slot where it shows the array, else the device.
    fn read(&self, offset: usize) -> u8 {
        let mut byte = [0];
        if !self.slots.read(BASE + offset as u64, &mut byte) {
            self.flash.read(offset as u64, &mut byte);
        }
        byte[0]
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        for &byte in bytes {
            // The slot is read-only: a write always exits.
            assert!(!self.slots.write(BASE + offset as u64, &[byte]));
            assert_eq!(self.flash.write(offset as u64, &[byte]), None);
        }
    }

    fn file(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }
}

#[test]
fn ovmf_finds_a_flash_and_not_a_rom() {
    let rig = rig();
    // QemuFlashDetected: clear and read the status, which must be 0, and go back.
    rig.write(0, &[0x50, 0x70]);
    assert!(rig.slots.shown().is_empty());
    assert_eq!(rig.read(0), 0);
    rig.write(0, &[0xff]);
    assert_eq!((rig.read(0), rig.slots.shown().len()), (0xa5, 1));
    // Its newer self programs what is there already and looks for an error.
    rig.write(5, &[0x10, 0xa5, 0x70]);
    assert_eq!(rig.read(5) & 0x10, 0);
    rig.write(5, &[0xff]);
    assert_eq!(rig.read(5), 0xa5);
}

#[test]
fn programmed_bytes_are_read_at_once_and_kept_when_the_driver_is_done() {
    let rig = rig();
    rig.write(0x1003, &[0x10, 0x12]);
    rig.write(0x1004, &[0x40, 0x34]);
    assert_eq!([rig.read(0x1003), rig.read(0x1004)], [0x12, 0x34]);
    assert_eq!(rig.slots.shown().len(), 1, "the array stays in sight while it is programmed");
    assert_eq!(rig.file()[0x1003], 0xa5);
    rig.write(0x1004, &[0xff]);
    assert_eq!(rig.file()[0x1002..0x1006], [0xa5, 0x12, 0x34, 0xa5]);
    rig.executor.turn(4);
    assert_eq!(rig.problems.load(Ordering::SeqCst), 0);
}

#[test]
fn what_a_driver_left_unfinished_is_kept_when_the_machine_stops() {
    let rig = rig();
    rig.write(7, &[0x10, 0x99]);
    rig.flash.pause();
    assert_eq!(rig.file()[7], 0x99);
}

#[test]
fn an_erasure_covers_its_block_and_needs_its_confirmation() {
    let rig = rig();
    rig.write(BLOCK + 77, &[0x20, 0xd0]);
    let all: Vec<u8> = (0..SIZE).map(|at| rig.read(at)).collect();
    assert!(all[BLOCK..2 * BLOCK].iter().all(|&b| b == 0xff));
    assert!(all[..BLOCK].iter().chain(&all[2 * BLOCK..]).all(|&b| b == 0xa5));
    rig.write(0, &[0x20, 0x00, 0x70]);
    assert_eq!(rig.read(0), 0xb0);
    rig.write(0, &[0xff]);
    assert_eq!(rig.read(0), 0xa5);
}

#[test]
fn a_reset_shows_the_array_with_all_that_was_programmed() {
    let rig = rig();
    for start in [&[0x70][..], &[0x10], &[0x20], &[0x10, 1, 0x70]] {
        rig.write(9, start);
        rig.flash.pause();
        rig.flash.reset();
        assert_eq!(rig.slots.shown(), [(BASE, SIZE as u64)]);
    }
    assert_eq!(rig.read(9), 1);
    assert_eq!(rig.file()[9], 1);
    rig.write(9, &[0x70]);
    assert_eq!(rig.read(9), 0x80);
}

#[test]
fn a_restored_chip_is_in_the_same_state_and_has_the_same_contents() {
    let saved = rig();
    saved.write(3, &[0x10, 0x42]);
    saved.write(3, &[0x70]);
    saved.flash.pause();
    let section = saved.flash.save().unwrap();
    let fresh = rig();
    fresh.flash.pause();
    fresh.flash.restore(&section).unwrap();
    assert_eq!(fresh.flash.save().unwrap(), section);
    assert_eq!((fresh.read(3), fresh.file()[3]), (0x80, 0x42));
    fresh.write(0, &[0xff]);
    assert_eq!(fresh.read(3), 0x42);
}

#[test]
fn a_state_of_another_size_is_refused() {
    let rig = rig();
    let state = PflashState { mode: Mode::Array, status: 0, contents: Bytes(vec![0; BLOCK]) };
    assert!(rig.flash.restore(&Section::encode("flash", &state).unwrap()).is_err());
}

#[test]
fn a_host_that_fails_is_told_once_and_the_guest_sees_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nvram.fd");
    let mut nvram = Nvram::open(&path, &[0; SIZE]).unwrap();
    nvram.fail_from_now_on();
    let problems = Arc::new(AtomicUsize::new(0));
    let count = problems.clone();
    let complain: ProblemSink = Arc::new(move |_, _| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let executor = InlineExecutor::new().unwrap();
    let flash = Pflash::new(BASE, nvram, Arc::new(FakeSlots::default()), Arc::new(executor), complain).unwrap();
    for byte in [0x10, 1, 0x70, 0x10, 2, 0x70] {
        flash.write(0, &[byte]);
    }
    let mut status = [0];
    flash.read(0, &mut status);
    assert_eq!(status[0], 0x90);
    assert_eq!(problems.load(Ordering::SeqCst), 1);
}

/// What the chip should be: the array, and the commands as the driver's source has them.
struct Model {
    array: Vec<u8>,
    mode: u8,
    status: u8,
}

impl Model {
    fn write(&mut self, offset: usize, byte: u8) {
        match self.mode {
            0x10 => {
                self.array[offset] = byte;
                (self.mode, self.status) = (0xff, 0x80);
            }
            0x20 => {
                self.status = 0xb0;
                if byte == 0xd0 {
                    self.array[offset / BLOCK * BLOCK..][..BLOCK].fill(0xff);
                    self.status = 0x80;
                }
                self.mode = 0xff;
            }
            _ => {
                self.mode = match byte {
                    0x10 | 0x40 => 0x10,
                    0x20 | 0x70 => byte,
                    _ => 0xff,
                };
                if byte == 0x50 {
                    self.status = 0;
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn any_writes_do_what_the_command_set_says(
        writes in proptest::collection::vec(
            (0..SIZE, prop_oneof![Just(0x10u8), Just(0x20), Just(0xd0), Just(0x70), Just(0x50), Just(0xff), any::<u8>()]),
            0..200,
        ),
    ) {
        let rig = rig();
        let mut model = Model { array: vec![0xa5; SIZE], mode: 0xff, status: 0x80 };
        for (offset, byte) in writes {
            rig.write(offset, &[byte]);
            model.write(offset, byte);
            let seen = rig.read(offset);
            prop_assert_eq!(seen, if model.mode == 0x70 { model.status } else { model.array[offset] });
            prop_assert_eq!(rig.slots.shown().is_empty(), model.mode == 0x70);
        }
        rig.flash.pause();
        prop_assert_eq!(rig.file(), model.array);
    }

    #[test]
    fn no_size_or_place_of_an_access_panics(
        accesses in proptest::collection::vec((0..SIZE as u64 + 16, 0usize..9, any::<u8>()), 0..100),
    ) {
        let rig = rig();
        for (offset, len, byte) in accesses {
            rig.flash.write(offset, &vec![byte; len]);
            rig.flash.read(offset, &mut vec![0; len]);
        }
        prop_assert_eq!(rig.problems.load(Ordering::SeqCst), 0);
        prop_assert_eq!(rig.file().len(), SIZE);
    }
}

#[test]
fn a_guarded_flash_is_read_by_all_and_changed_in_system_management_mode_alone() {
    let Rig { flash, slots, executor, problems, path, _dir } = rig();
    let rig = Rig { flash: flash.guarded(), slots, executor, problems, path, _dir };
    let in_smm = |offset: u64, byte: u8| assert_eq!(rig.flash.write_in_smm(offset, &[byte]), None);
    rig.write(0x1010, &[command::PROGRAM, 0x42]);
    rig.write(0x1000, &[command::ERASE, command::CONFIRM]);
    rig.write(0, &[command::READ_STATUS]);
    assert_eq!((rig.read(0x1010), rig.read(0)), (0xa5, 0xa5));
    in_smm(0x1010, command::PROGRAM);
    // Nor does anybody else come in between.
    rig.write(0x1010, &[0x13]);
    in_smm(0x1010, 0x42);
    assert_eq!(rig.read(0x1010), 0x42);
}
