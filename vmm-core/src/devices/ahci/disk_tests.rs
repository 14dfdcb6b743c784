//! Disks behind the controller, command by command, by a driver that is honest or hostile.

use proptest::prelude::*;

use super::registers::{SLOTS, is};
use super::tests::*;
use super::*;
use crate::backend::disk::{Control, DiskError, MemoryDisk};
use crate::base::GuestAddress;

const SECTORS: u64 = 400;
const SECTOR: usize = 512;
const ERROR: u32 = 0x51;

/// A disk on which byte `i` tells where it is.
fn pattern() -> Vec<u8> {
    (0..SECTORS as usize * SECTOR).map(|i| (i / SECTOR * 7 + i * 3) as u8).collect()
}

fn disk(readonly: bool) -> (Drive, Control) {
    let (disk, control) = MemoryDisk::new(pattern(), readonly);
    (Drive::Disk(Box::new(disk), "disk0".into()), control)
}

fn one_disk() -> (Driver, Control) {
    let (drive, control) = disk(false);
    let driver = Driver::with(vec![drive]);
    driver.start(0);
    (driver, control)
}

/// A command's FIS: code, features, LBA, device, count.
fn fis(code: u8, features: u16, lba: u64, device: u8, count: u16) -> [u8; 20] {
    let ([a, b, c, d, e, f, ..], [f0, f1], [c0, c1]) = (lba.to_le_bytes(), features.to_le_bytes(), count.to_le_bytes());
    [0x27, 0x80, code, f0, a, b, c, device, d, e, f, f1, c0, c1, 0, 0, 0, 0, 0, 0]
}

fn simple(code: u8, lba: u64, count: u16) -> [u8; 20] {
    fis(code, 0, lba, 0x40, count)
}

/// A queued command in slot `tag`.
fn queued(code: u8, tag: u64, lba: u64, count: u16) -> [u8; 20] {
    fis(code, count, lba, 0x40, (tag as u16) << 3)
}

impl Driver {
    /// Runs a command in slot 0 and returns its error register (0: good) and the interrupts.
    fn command(&self, fis: &[u8], list: &[(u64, u32)]) -> (u8, u32) {
        self.prepare(0, fis, &[], list);
        self.set_port(0, PX_IS, u32::MAX);
        self.issue(0, 1);
        let (task_file, interrupts) = (self.port(0, PX_TFD), self.port(0, PX_IS));
        if task_file & 1 == 0 {
            assert_eq!((self.port(0, PX_CI), task_file), (0, 0x50));
        } else {
            assert_eq!((self.port(0, PX_CI), task_file & 0xff), (1, ERROR));
            self.recover();
        }
        ((task_file >> 8) as u8, interrupts)
    }

    /// The same with a buffer of so many bytes; returns what came into it and checks the count that the driver is told.
    fn reads(&self, fis: &[u8], len: usize) -> Vec<u8> {
        self.memory.fill(GuestAddress(BUFFER), len, 0xcc).unwrap();
        assert_eq!(self.command(fis, &[(BUFFER, len as u32)]).0, 0, "{fis:x?}");
        assert_eq!(self.memory.read_obj::<u32>(GuestAddress(LIST + 4)).unwrap(), len as u32);
        self.bytes(BUFFER, len)
    }

    fn writes(&self, fis: &[u8], bytes: &[u8]) -> (u8, u32) {
        self.memory.write(GuestAddress(BUFFER), bytes).unwrap();
        self.command(fis, &[(BUFFER, bytes.len() as u32)])
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(GuestAddress(at), &mut bytes).unwrap();
        bytes
    }

    /// Queues commands, all at once, and lets them run.
    fn queue(&self, tags: u32) {
        self.set_port(0, PX_IS, u32::MAX);
        self.set_port(0, PX_SACT, tags);
        self.issue(0, tags);
    }

    fn identify(&self) -> Vec<u16> {
        let bytes = self.reads(&simple(0xec, 0, 0), 512);
        assert_eq!(bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "the integrity word");
        bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
    }
}

#[test]
fn a_disk_says_what_it_is() {
    let (driver, _) = one_disk();
    assert_eq!((driver.port(0, PX_SIG), driver.port(0, PX_SSTS)), (0x101, 0x133));
    let signature: [u8; 20] = driver.memory.read_obj(GuestAddress(FISES + 0x40)).unwrap();
    assert_eq!(signature[..14], [0x34, 0, 0x50, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    let words = driver.identify();
    let text = |range: std::ops::Range<usize>| -> String {
        words[range].iter().flat_map(|w| w.to_be_bytes()).map(char::from).collect()
    };
    assert_eq!((text(10..20).trim_end(), text(27..47).trim_end()), ("disk0", "Orangery Disk"));
    assert_eq!((words[60], words[61], words[100], words[101]), (SECTORS as u16, 0, SECTORS as u16, 0));
    assert_eq!((words[75], words[76] & 1 << 8), (31, 1 << 8), "32 queued commands");
    assert_eq!((words[106], words[209]), (0x6003, 0x4000), "eight aligned logical sectors in a physical one");
    assert_eq!((words[217], words[169], words[105], words[69]), (1, 1, 8, 0), "no rotation; TRIM without a promise");
    assert_eq!((words[82] & 1, words[85] & 1 << 5), (0, 1 << 5), "no SMART; the write cache is on");
    // The last PIO setup FIS shows the status after the data.
    let fis: [u8; 20] = driver.memory.read_obj(GuestAddress(FISES + 0x20)).unwrap();
    assert_eq!((fis[0], fis[1], fis[2], fis[15], fis[16], fis[17]), (0x5f, 0x60, 0x58, 0x50, 0, 2));
}

#[test]
fn every_read_command_reads_and_every_write_command_writes() {
    let (driver, control) = one_disk();
    let mut model = pattern();
    for (code, pio) in
        [(0xc8, false), (0x25, false), (0x20, true), (0x21, true), (0x24, true), (0xc4, true), (0x29, true)]
    {
        let at = 5 * SECTOR;
        assert!(driver.reads(&simple(code, 5, 3), 3 * SECTOR) == model[at..at + 3 * SECTOR], "{code:x}");
        assert_eq!(driver.port(0, PX_IS), if pio { is::PIO_SETUP } else { is::D2H }, "{code:x}");
    }
    for code in [0xca, 0x35, 0x30, 0x31, 0x34, 0xc5, 0x39, 0x3d, 0xce] {
        let at = usize::from(code);
        assert_eq!(driver.writes(&simple(code, at as u64, 2), &[code; 2 * SECTOR]), (0, is::D2H), "{code:x}");
        model[at * SECTOR..(at + 2) * SECTOR].fill(code);
    }
    assert!(control.bytes() == model);
    assert_eq!(control.flushes(), (0, 2), "those with FUA, no others");
    // A count of zero is 256 sectors.
    assert!(driver.reads(&simple(0xc8, 10, 0), 256 * SECTOR) == model[10 * SECTOR..266 * SECTOR]);
}

#[test]
fn old_systems_address_by_cylinder_head_and_sector() {
    let (driver, control) = one_disk();
    let bytes = control.bytes();
    let chs = |cylinder: u64, head: u8, sector: u64| fis(0x20, 0, cylinder << 8 | sector, head, 1);
    assert!(driver.reads(&chs(0, 2, 3), SECTOR) == bytes[128 * SECTOR..129 * SECTOR]);
    assert_eq!(driver.command(&chs(0, 0, 0), &[(BUFFER, 512)]).0, 0x10, "sectors count from 1");
    assert_eq!(driver.command(&chs(0, 0, 64), &[(BUFFER, 512)]).0, 0x10);
    assert_eq!(driver.command(&chs(1, 0, 1), &[(BUFFER, 512)]).0, 0x10, "beyond the disk");
    // Four heads of ten sectors.
    assert_eq!(driver.command(&fis(0x91, 0, 0, 3, 10), &[]).0, 0);
    assert_eq!(driver.command(&fis(0x91, 0, 0, 3, 0), &[]).0, 4);
    assert!(driver.reads(&chs(2, 3, 4), SECTOR) == bytes[113 * SECTOR..114 * SECTOR]);
    assert_eq!(driver.identify()[54..59], [10, 4, 10, 400, 0]);
}

#[test]
fn what_is_not_there_is_not_found_and_what_is_unknown_is_aborted() {
    let (driver, control) = one_disk();
    for code in [0xc8, 0x25, 0x20, 0x24, 0x40, 0x42, 0xca, 0x35] {
        assert_eq!(
            driver.command(&simple(code, SECTORS - 1, 2), &[(BUFFER, 1024)]),
            (0x10, is::D2H | is::TASK_FILE_ERROR)
        );
        let fis: [u8; 20] = driver.memory.read_obj(GuestAddress(FISES + 0x40)).unwrap();
        assert_eq!((fis[3], fis[4], fis[5]), (0x10, (SECTORS - 1) as u8, 1), "{code:x}");
    }
    assert_eq!(driver.command(&simple(0x25, 0xffff_ffff_ffff, 0), &[(BUFFER, 512)]).0, 0x10);
    // PACKET, IDENTIFY PACKET DEVICE, SMART, SET MAX, SECURITY SET PASSWORD, NOP, DOWNLOAD MICROCODE.
    for code in [0xa0, 0xa1, 0xb0, 0xf9, 0xf1, 0x00, 0x92, 0xff] {
        assert_eq!(driver.command(&simple(code, 0, 1), &[(BUFFER, 512)]).0, 4, "{code:x}");
    }
    // A list that is shorter than the transfer.
    for list in [&[][..], &[(BUFFER, 512)], &[(BUFFER, 512), (BUFFER + 512, 510)]] {
        assert_eq!(driver.command(&simple(0x25, 0, 2), list).0, 4);
    }
    assert!(control.bytes() == pattern());
    assert_eq!(driver.command(&simple(0x25, SECTORS - 1, 1), &[(BUFFER, 512)]).0, 0);
}

#[test]
fn what_a_driver_sets_up_is_remembered_until_the_reset() {
    let (driver, control) = one_disk();
    let set = |feature: u16, value: u16| driver.command(&fis(0xef, feature, 0, 0x40, value), &[]).0;
    let fresh = driver.identify();
    assert_eq!((fresh[59], fresh[63] >> 8, fresh[88] >> 8), (0x110, 0, 0x20));
    assert_eq!((set(0x82, 0), set(3, 0x22), set(3, 0x47), set(0x55, 0), set(0x10, 2)), (0, 0, 4, 4, 4));
    assert_eq!(driver.writes(&simple(0x35, 0, 1), &[9; 512]).0, 0);
    assert_eq!(control.flushes(), (0, 1), "without a cache every write is durable");
    assert_eq!(driver.command(&simple(0xc6, 0, 3), &[]).0, 4);
    assert_eq!(driver.command(&simple(0xc6, 0, 0), &[]).0, 0);
    for code in [0xc4, 0xc5, 0x29, 0x39, 0xce] {
        assert_eq!(driver.command(&simple(code, 0, 1), &[(BUFFER, 512)]).0, 4, "{code:x}");
    }
    let words = driver.identify();
    assert_eq!((words[59], words[63] >> 8, words[88] >> 8, words[85] & 1 << 5), (0, 4, 0, 0));
    assert_eq!(set(2, 0), 0);
    assert_eq!(driver.identify()[85] & 1 << 5, 1 << 5);
    driver.ahci.pause();
    driver.ahci.reset();
    driver.ahci.resume();
    driver.map();
    driver.start(0);
    assert_eq!(driver.identify(), fresh);
}

#[test]
fn power_diagnostics_and_native_size_are_answered() {
    let (driver, control) = one_disk();
    for code in [0xe0, 0xe1, 0xe2, 0xe3, 0xe6, 0x10, 0x1f, 0x70, 0x40, 0x42] {
        assert_eq!(driver.command(&simple(code, 0, 1), &[]).0, 0, "{code:x}");
    }
    let answer = |fis: &[u8]| {
        driver.prepare(0, fis, &[], &[]);
        driver.issue(0, 1);
        driver.memory.read_obj::<[u8; 20]>(GuestAddress(FISES + 0x40)).unwrap()
    };
    assert_eq!(answer(&simple(0xe5, 0, 0))[12], 0xff, "active");
    assert_eq!(answer(&simple(0xf8, 0, 0))[4..8], [(SECTORS - 1) as u8, 1, 0, 0x40]);
    assert_eq!(answer(&simple(0x27, 0, 0))[4..11], [(SECTORS - 1) as u8, 1, 0, 0, 0, 0, 0]);
    assert_eq!(answer(&simple(0x90, 0, 0))[2..14], [0x50, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    for code in [0xe7, 0xea] {
        assert_eq!(driver.command(&simple(code, 0, 0), &[]).0, 0);
    }
    assert_eq!(control.flushes().0, 2);
}

#[test]
fn a_trim_discards_its_ranges_and_nothing_else() {
    let (driver, control) = one_disk();
    let range = |first: u64, count: u64| (first | count << 48).to_le_bytes();
    let trim = |ranges: &[[u8; 8]], blocks: u16, feature: u16| {
        let mut bytes = ranges.concat();
        bytes.resize(usize::from(blocks).max(1) * SECTOR, 0);
        driver.writes(&fis(0x06, feature, 0, 0x40, blocks), &bytes).0
    };
    assert_eq!(trim(&[range(8, 8), range(16, 4), range(0, 0), range(100, 1)], 1, 1), 0);
    let mut model = pattern();
    for (first, end) in [(8, 20), (100, 101)] {
        model[first * SECTOR..end * SECTOR].fill(0xdd);
    }
    assert!(control.bytes() == model);
    assert_eq!(trim(&[range(0, 0)], 8, 1), 0, "nothing to do");
    assert_eq!(trim(&[range(0, 1), range(SECTORS, 1)], 1, 1), 0x10);
    assert_eq!(trim(&[range(0xffff_ffff_ffff, 0xffff)], 1, 1), 0x10);
    assert_eq!((trim(&[], 0, 1), trim(&[], 9, 1), trim(&[range(0, 1)], 1, 0)), (4, 4, 4));
    assert_eq!(driver.command(&fis(0x06, 1, 0, 0x40, 2), &[(BUFFER, 512)]).0, 4, "half a list");
    assert!(control.bytes() == model);
}

#[test]
fn queued_commands_are_in_flight_together_and_end_by_their_tags() {
    let (driver, control) = one_disk();
    let bytes = control.bytes();
    control.hold(true);
    for tag in 0..32u64 {
        let at = BUFFER + 0x1000 * tag;
        driver.prepare(tag, &queued(0x60, tag, 3 * tag, 2), &[], &[(at, 1024)]);
    }
    driver.queue(u32::MAX);
    assert_eq!(control.held(), 32);
    // The device has them all: the slots are free, the tags are not, and nobody is told yet.
    assert_eq!((driver.port(0, PX_CI), driver.port(0, PX_SACT), driver.port(0, PX_IS)), (0, u32::MAX, 0));
    assert_eq!(driver.port(0, PX_TFD), 0x50);
    control.hold(false);
    driver.resume_disk();
    assert_eq!((driver.port(0, PX_SACT), driver.port(0, PX_IS)), (0, is::DEVICE_BITS));
    let device_bits: [u8; 8] = driver.memory.read_obj(GuestAddress(FISES + 0x58)).unwrap();
    assert_eq!(device_bits, [0xa1, 0x40, 0x50, 0, 0xff, 0xff, 0xff, 0xff]);
    for tag in 0..32usize {
        let at = 3 * tag * SECTOR;
        assert!(driver.bytes(BUFFER + 0x1000 * tag as u64, 1024) == bytes[at..at + 1024], "{tag}");
    }
    // A queued write with FUA.
    driver.memory.write(GuestAddress(BUFFER), &[0x77; 512]).unwrap();
    driver.prepare(4, &fis(0x61, 1, 9, 0xc0, 4 << 3), &[], &[(BUFFER, 512)]);
    driver.queue(1 << 4);
    assert_eq!((driver.port(0, PX_SACT), control.flushes()), (0, (0, 1)));
    assert!(control.bytes()[9 * SECTOR..10 * SECTOR] == [0x77; 512]);
}

#[test]
fn a_queued_command_that_fails_stops_the_queue_and_is_named_in_the_log() {
    let (driver, control) = one_disk();
    control.hold(true);
    driver.prepare(3, &queued(0x60, 3, 0, 1), &[], &[(BUFFER, 512)]);
    driver.prepare(7, &queued(0x60, 7, SECTORS, 1), &[], &[(BUFFER, 512)]);
    driver.queue(1 << 3 | 1 << 7);
    assert_eq!((driver.port(0, PX_CI), driver.port(0, PX_SACT)), (0, 1 << 3 | 1 << 7));
    assert_eq!(driver.port(0, PX_IS), is::DEVICE_BITS | is::TASK_FILE_ERROR);
    assert_eq!(driver.port(0, PX_TFD), 0x1051);
    let device_bits: [u8; 8] = driver.memory.read_obj(GuestAddress(FISES + 0x58)).unwrap();
    assert_eq!(device_bits, [0xa1, 0x40, 0x51, 0x10, 0, 0, 0, 0]);
    // The other one is still at the disk: the port says that it runs until that is over.
    driver.set_port(0, PX_CMD, 0x16);
    assert_eq!(driver.port(0, PX_CMD) & 0x8000, 0x8000);
    control.hold(false);
    driver.resume_disk();
    driver.recover();
    let log = driver.reads(&fis(0x2f, 0, 0x10, 0x40, 1), 512);
    assert_eq!(log.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    assert_eq!((&log[..7], &log[8..11]), (&[7, 0, 0x51, 0x10, 0x90, 1, 0][..], &[0, 0, 0][..]));
    let log = driver.reads(&fis(0x47, 0, 0x10, 0x40, 1), 512);
    assert_eq!(log[0], 0x80, "told once");
    assert_eq!(driver.reads(&fis(0x2f, 0, 0, 0x40, 1), 512)[..2], [1, 0]);
    assert_eq!(driver.command(&fis(0x2f, 0, 0x11, 0x40, 1), &[(BUFFER, 512)]).0, 4);
    driver.prepare(3, &queued(0x60, 3, 0, 1), &[], &[(BUFFER, 512)]);
    driver.queue(1 << 3);
    assert_eq!((driver.port(0, PX_SACT), driver.port(0, PX_IS)), (0, is::DEVICE_BITS));
}

#[test]
fn commands_that_may_not_be_beside_queued_ones_abort_all() {
    let other = [
        ("another kind", 1, simple(0x25, 0, 1)),
        ("a tag of another slot", 1, queued(0x60, 5, 0, 1)),
        ("twice", 0, queued(0x60, 0, 0, 1)),
    ];
    for (what, slot, fis) in other {
        let (driver, control) = one_disk();
        control.hold(true);
        driver.prepare(0, &queued(0x60, 0, 0, 1), &[], &[(BUFFER, 512)]);
        driver.queue(1);
        assert_eq!((control.held(), driver.port(0, PX_CI)), (1, 0));
        driver.prepare(slot, &fis, &[], &[(BUFFER, 512)]);
        driver.queue(1 << slot);
        assert_eq!(driver.port(0, PX_TFD), 0x451, "{what}");
        assert_eq!(driver.port(0, PX_IS), is::D2H | is::TASK_FILE_ERROR, "{what}");
        assert_eq!(control.held(), 1, "{what}");
        control.hold(false);
        driver.resume_disk();
        driver.recover();
        driver.identify();
    }
}

#[test]
fn a_reset_with_requests_in_flight_waits_for_them_and_forgets_them() {
    let (driver, control) = one_disk();
    let pending = |driver: &Driver| {
        control.hold(true);
        for tag in 0..4u64 {
            driver.prepare(tag, &queued(0x61, tag, tag, 1), &[], &[(BUFFER, 512)]);
        }
        driver.queue(0xf);
        assert_eq!(control.held(), 4);
    };
    let go_on = |driver: &Driver| {
        control.hold(false);
        driver.resume_disk();
    };
    // COMRESET, from a driver that did not stop the port: the device is not ready while it has the guest's memory.
    pending(&driver);
    driver.set_port(0, PX_SCTL, 0x301);
    driver.set_port(0, PX_SCTL, 0x300);
    assert_eq!((driver.port(0, PX_TFD), driver.port(0, PX_SACT), driver.port(0, PX_CI)), (0x80, 0, 0));
    driver.prepare(9, &simple(0xec, 0, 0), &[], &[(BUFFER, 512)]);
    driver.issue(0, 1 << 9);
    assert_eq!(driver.port(0, PX_CI), 1 << 9, "the next command waits, too");
    driver.memory.fill(GuestAddress(FISES + 0x40), 20, 0).unwrap();
    go_on(&driver);
    let signature: [u8; 20] = driver.memory.read_obj(GuestAddress(FISES + 0x40)).unwrap();
    assert_eq!((signature[0], driver.port(0, PX_TFD), driver.port(0, PX_CI)), (0x34, 0x50, 0));
    assert_eq!(driver.port(0, PX_IS) & is::DEVICE_BITS, 0);
    // The controller's reset lasts as long.
    pending(&driver);
    driver.write(4, 1);
    assert_eq!(driver.read(4) & 1, 1);
    go_on(&driver);
    assert_eq!((driver.read(4), driver.port(0, PX_TFD)), (1 << 31, 0x150));
    driver.start(0);
    // So does stopping the port.
    pending(&driver);
    driver.set_port(0, PX_CMD, 0x16);
    assert_eq!((driver.port(0, PX_CMD) & 0x8000, driver.port(0, PX_SACT)), (0x8000, 0));
    go_on(&driver);
    driver.recover();
    driver.identify();
}

#[test]
fn a_pause_waits_for_what_is_in_flight_and_a_checkpoint_goes_on_elsewhere() {
    let (driver, control) = one_disk();
    driver.command(&fis(0xef, 0x82, 0, 0x40, 0), &[]);
    control.hold(true);
    // Larger than a piece, so that the pause has to ask for the rest itself.
    driver.memory.write(GuestAddress(BUFFER), &[0x3c; 256 * SECTOR]).unwrap();
    let list: Vec<_> = (0..1024u64).map(|i| (BUFFER + 128 * i, 128)).collect();
    driver.prepare_long(0, &simple(0x35, 20, 256), &list);
    driver.issue(0, 1);
    assert_eq!((control.held(), driver.port(0, PX_CI)), (1, 1));
    driver.ahci.pause();
    assert_eq!((driver.port(0, PX_CI), driver.port(0, PX_IS) & 1), (0, 1));
    assert!(control.bytes()[20 * SECTOR..276 * SECTOR].iter().all(|&b| b == 0x3c));
    driver.prepare(2, &queued(0x60, 2, 20, 1), &[], &[(BUFFER, 512)]);
    driver.queue(1 << 2);
    let section = driver.ahci.save().unwrap();
    let copy = || {
        let (disk, control) = MemoryDisk::new(control.bytes(), false);
        (Driver::with(vec![Drive::Disk(Box::new(disk), "disk0".into())]), control)
    };
    let (other, _) = copy();
    other.ahci.pause();
    other.ahci.restore(&section).unwrap();
    assert_eq!(other.ahci.save().unwrap(), section);
    other.root.refresh();
    other.memory.write(GuestAddress(0), &driver.bytes(0, RAM as usize)).unwrap();
    other.ahci.resume();
    other.run();
    assert_eq!((other.port(0, PX_CI), other.port(0, PX_SACT)), (0, 0));
    assert_eq!(other.bytes(BUFFER, 512), [0x3c; 512]);
    assert_eq!(other.identify()[85] & 1 << 5, 0, "the cache is off");
    // Not into another disk, and not into a CD-ROM drive.
    let (smaller, _) = MemoryDisk::new(vec![0; 512], false);
    let wrong = [Drive::Disk(Box::new(smaller), "disk0".into()), disk(true).0, Drive::Cd(None)];
    for drive in wrong {
        assert!(Driver::with(vec![drive]).ahci.restore(&section).is_err());
    }
}

#[test]
fn what_the_host_fails_at_is_an_error_of_one_command_and_told_once() {
    let (disk_drive, control) = disk(false);
    let (second, second_control) = disk(false);
    let driver = Driver::with(vec![disk_drive, second]);
    driver.start(0);
    control.fail(Some(|| DiskError::Shrunk));
    assert_eq!(driver.writes(&simple(0x35, 0, 1), &[1; 512]).0, 4);
    assert_eq!(driver.writes(&simple(0x35, 0, 1), &[1; 512]).0, 4);
    assert_eq!(driver.command(&simple(0xea, 0, 0), &[]).0, 4);
    assert_eq!(driver.command(&simple(0x25, 1, 1), &[(BUFFER, 512)]).0, 0x40);
    let problems = driver.problems.lock().unwrap().clone();
    assert!(problems.len() == 1 && problems[0].contains("cut short"), "{problems:?}");
    assert!(driver.stalls.lock().unwrap().is_empty());
    control.fail(None);
    assert_eq!(driver.command(&simple(0x25, 1, 1), &[(BUFFER, 512)]).0, 0);
    // A disk that hangs keeps no other port.
    control.hold(true);
    driver.prepare(0, &simple(0x25, 0, 1), &[], &[(BUFFER, 512)]);
    driver.issue(0, 1);
    driver.start(1);
    driver.prepare(1, &simple(0x25, 3, 1), &[], &[(BUFFER + 512, 512)]);
    driver.issue(1, 2);
    assert_eq!((driver.port(0, PX_CI), driver.port(1, PX_CI)), (1, 0));
    assert!(driver.bytes(BUFFER + 512, 512) == second_control.bytes()[3 * SECTOR..4 * SECTOR]);
    control.hold(false);
    driver.resume_disk();
    assert_eq!(driver.port(0, PX_CI), 0);
}

/// Writes of a sector each that the driver started: queued ones, or one that is not.
fn full_host(queue: bool) -> (Driver, Control, u32) {
    let (driver, control) = one_disk();
    control.fail(Some(|| DiskError::Full));
    driver.memory.fill(GuestAddress(BUFFER), 512, 0x77).unwrap();
    let slots: u32 = if queue { 0b1011_0100 } else { 0b100 };
    for slot in (0..SLOTS.into()).filter(|slot| slots & 1 << slot != 0) {
        let command = if queue { queued(0x61, slot, slot, 1) } else { simple(0x35, slot, 1) };
        driver.prepare(slot, &command, &[], &[(BUFFER, 512)]);
    }
    driver.set_port(0, PX_IS, u32::MAX);
    driver.set_port(0, PX_SACT, if queue { slots } else { 0 });
    driver.issue(0, slots);
    (driver, control, slots)
}

#[test]
fn a_full_host_pauses_the_machine_and_no_write_fails_or_is_lost() {
    for (queue, moved) in [(false, false), (false, true), (true, false), (true, true)] {
        let (driver, mut control, slots) = full_host(queue);
        let (active, issued) = if queue { (slots, 0) } else { (0, slots) };
        let shown = |driver: &Driver| (driver.port(0, PX_SACT), driver.port(0, PX_CI), driver.port(0, PX_IS));
        let stalls = std::mem::take(&mut *driver.stalls.lock().unwrap());
        assert!(stalls.len() == 1 && stalls[0].contains("no space left"), "{stalls:?}");
        assert_eq!(shown(&driver), (active, issued, 0), "for the driver it goes on");
        driver.run();
        assert!(driver.stalls.lock().unwrap().is_empty() && driver.problems.lock().unwrap().is_empty(), "it was said");
        // Still full: the machine is paused once more.
        driver.ahci.pause();
        driver.ahci.resume();
        driver.run();
        assert_eq!(std::mem::take(&mut *driver.stalls.lock().unwrap()).len(), 1);
        assert_eq!(shown(&driver), (active, issued, 0));
        driver.ahci.pause();
        control.fail(None);
        let driver = if moved {
            let section = driver.ahci.save().unwrap();
            let (disk, others) = MemoryDisk::new(pattern(), false);
            control = others;
            let other = Driver::with(vec![Drive::Disk(Box::new(disk), "disk0".into())]);
            other.ahci.pause();
            other.ahci.restore(&section).unwrap();
            assert_eq!(other.ahci.save().unwrap(), section);
            other.root.refresh();
            other.memory.write(GuestAddress(0), &driver.bytes(0, RAM as usize)).unwrap();
            other
        } else {
            driver
        };
        driver.ahci.resume();
        driver.run();
        let end = if queue { is::DEVICE_BITS } else { is::D2H };
        assert_eq!(shown(&driver), (0, 0, end));
        assert_eq!(driver.port(0, PX_TFD), 0x50);
        let mut expected = pattern();
        for slot in (0..32).filter(|slot| slots & 1 << slot != 0) {
            expected[slot * SECTOR..(slot + 1) * SECTOR].fill(0x77);
        }
        assert!(control.bytes() == expected);
    }
}

#[test]
fn a_driver_that_gives_up_on_a_full_host_gets_a_fresh_port() {
    // By stopping the port, by a reset of the device, and by one of the whole controller.
    for way in 0..3 {
        let (driver, control, slots) = full_host(true);
        match way {
            0 => driver.set_port(0, PX_CMD, 0x16),
            1 => {
                driver.set_port(0, 0x2c, 0x301);
                driver.set_port(0, 0x2c, 0x300);
            }
            _ => driver.write(4, 1),
        }
        driver.run();
        driver.ahci.pause();
        control.fail(None);
        driver.ahci.resume();
        driver.run();
        assert_eq!((driver.port(0, PX_SACT), driver.port(0, PX_CI)), (0, 0), "{way} {slots:x}");
        assert!(control.bytes() == pattern(), "what was given up is not written");
        if way != 1 {
            driver.start(0);
        }
        driver.identify();
    }
}

#[test]
fn a_read_only_disk_refuses_every_write_and_says_what_it_is() {
    let (drive, control) = disk(true);
    let driver = Driver::with(vec![drive]);
    driver.start(0);
    for code in [0xca, 0x35, 0x30, 0x34, 0xc5, 0x39, 0x3d, 0xce] {
        assert_eq!(driver.writes(&simple(code, 0, 1), &[1; 512]).0, 4, "{code:x}");
    }
    assert_eq!(driver.writes(&fis(0x06, 1, 0, 0x40, 1), &[1; 512]).0, 4);
    assert_eq!(driver.command(&fis(0xef, 2, 0, 0x40, 0), &[]).0, 4);
    driver.prepare(1, &queued(0x61, 1, 0, 1), &[], &[(BUFFER, 512)]);
    driver.queue(2);
    assert_eq!(driver.port(0, PX_TFD), 0x451);
    driver.recover();
    let words = driver.identify();
    let model: String = words[27..47].iter().flat_map(|w| w.to_be_bytes()).map(char::from).collect();
    assert_eq!((model.trim_end(), words[82] & 1 << 5, words[85] & 1 << 5), ("Orangery Disk (read-only)", 0, 0));
    assert!(control.bytes() == pattern());
    assert_eq!(driver.command(&simple(0xea, 0, 0), &[]).0, 0);
}

#[test]
fn a_transfer_of_many_small_pieces_arrives_whole() {
    let (driver, control) = one_disk();
    // Pieces that end anywhere but at a sector: 390 sectors in entries of 2 to 100 bytes.
    let mut list = Vec::new();
    let (mut at, mut size) = (0u64, 2u64);
    let total = 390 * SECTOR as u64;
    while at < total {
        let now = size.min(total - at);
        list.push((BUFFER + at, now as u32));
        at += now;
        size = if size == 100 { 2 } else { size + 2 };
    }
    driver.prepare_long(0, &simple(0x25, 4, 390), &list);
    driver.issue(0, 1);
    assert_eq!(driver.port(0, PX_CI), 0);
    assert!(driver.bytes(BUFFER, total as usize) == control.bytes()[4 * SECTOR..394 * SECTOR]);
}

#[test]
fn structures_outside_ram_stop_only_their_port() {
    let (driver, _) = one_disk();
    let fatal = |driver: &Driver, what| {
        assert_eq!(driver.port(0, PX_IS) & is::HOST_BUS_FATAL, is::HOST_BUS_FATAL, "{what}");
        driver.recover();
        driver.identify();
    };
    for far in [RAM - 256, 0xffff_ffff_ffff_fe00] {
        driver.prepare(0, &simple(0x25, 0, 2), &[], &[(BUFFER, 512), (far, 512)]);
        driver.issue(0, 1);
        fatal(&driver, "a buffer");
        driver.prepare(2, &queued(0x60, 2, 0, 2), &[], &[(BUFFER, 512), (far, 512)]);
        driver.queue(4);
        fatal(&driver, "a queued command's buffer");
        driver.prepare(0, &fis(0x06, 1, 0, 0x40, 1), &[], &[(far, 512)]);
        driver.issue(0, 1);
        fatal(&driver, "ranges");
    }
    // A FIS that is cut short, and one that is none.
    for flags in [0u32, 3, 17, 31] {
        driver.prepare(0, &simple(0x25, 0, 1), &[], &[(BUFFER, 512)]);
        driver.memory.write_obj(GuestAddress(LIST), flags | 1 << 16).unwrap();
        driver.issue(0, 1);
        assert_eq!(driver.port(0, PX_TFD), 0x451, "{flags}");
        driver.recover();
    }
}

#[test]
fn drives_and_disks_share_the_controller() {
    let (first, _) = disk(false);
    let (second, _) = disk(false);
    let driver = Driver::with(vec![Drive::Cd(None), first, Drive::Cd(None), second]);
    assert_eq!(driver.read(0x0c), 0xf);
    let signatures = [0, 1, 2, 3].map(|port| driver.port(port, PX_SIG));
    assert_eq!(signatures, [0xeb14_0101, 0x101, 0xeb14_0101, 0x101]);
    assert_eq!(driver.ahci.change(1, None, true), Err(ChangeError::NoDrive(1)));
    assert!(driver.ahci.change(2, None, true).is_ok() && !driver.ahci.has_medium(1));
    driver.start(3);
    driver.prepare(0, &simple(0xec, 0, 0), &[], &[(BUFFER, 512)]);
    driver.issue(3, 1);
    assert_eq!(driver.port(3, PX_CI), 0);
}

impl Driver {
    /// Has a disk that was held go on.
    fn resume_disk(&self) {
        self.ahci.pause();
        self.ahci.resume();
        self.run();
    }

    /// Writes a command with a list of any length into a slot.
    fn prepare_long(&self, slot: u64, fis: &[u8], list: &[(u64, u32)]) {
        let table = 0x50_0000 + 0x10_0000 * (slot & 1);
        self.memory.write(GuestAddress(table), fis).unwrap();
        for (i, &(address, len)) in list.iter().enumerate() {
            let entry: [u32; 4] = [address as u32, (address >> 32) as u32, 0, len - 1];
            self.memory.write_obj(GuestAddress(table + 0x80 + 16 * i as u64), entry).unwrap();
        }
        let flags = 5 | (list.len() as u32) << 16;
        self.memory.write_obj(GuestAddress(LIST + 32 * slot), [flags, 0, table as u32, 0]).unwrap();
    }
}

/// What a random driver does.
#[derive(Debug, Clone)]
enum Step {
    Read {
        code: u8,
        first: u64,
        count: u16,
    },
    Write {
        code: u8,
        first: u64,
        count: u16,
        seed: u8,
    },
    /// Several at once, each somewhere else.
    Queue(Vec<(bool, u8)>),
    Cache(bool),
    Flush,
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (0..SECTORS + 4, 1..20u16);
    let read = (prop::sample::select(vec![0xc8u8, 0x25, 0x20, 0x24, 0xc4, 0x29]), place());
    let write = (prop::sample::select(vec![0xcau8, 0x35, 0x30, 0x34, 0xc5, 0x39, 0x3d, 0xce]), place(), any::<u8>());
    prop_oneof![
        read.prop_map(|(code, (first, count))| Step::Read { code, first, count }),
        write.prop_map(|(code, (first, count), seed)| Step::Write { code, first, count, seed }),
        prop::collection::vec((any::<bool>(), any::<u8>()), 1..32).prop_map(Step::Queue),
        any::<bool>().prop_map(Step::Cache),
        Just(Step::Flush),
        Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_is_what_was_written_to_it(steps in prop::collection::vec(step(), 1..40)) {
        let (driver, control) = one_disk();
        let mut model = pattern();
        for step in steps {
            match step {
                Step::Read { code, first, count } => {
                    let (at, len) = (first as usize * SECTOR, usize::from(count) * SECTOR);
                    if first + u64::from(count) > SECTORS {
                        prop_assert_eq!(driver.command(&simple(code, first, count), &[(BUFFER, len as u32)]).0, 0x10);
                    } else {
                        prop_assert!(driver.reads(&simple(code, first, count), len) == model[at..at + len]);
                    }
                }
                Step::Write { code, first, count, seed } => {
                    let bytes: Vec<u8> = (0..usize::from(count) * SECTOR).map(|i| (i / 3) as u8 ^ seed).collect();
                    let (error, _) = driver.writes(&simple(code, first, count), &bytes);
                    if first + u64::from(count) > SECTORS {
                        prop_assert_eq!(error, 0x10);
                    } else {
                        prop_assert_eq!(error, 0);
                        let at = first as usize * SECTOR;
                        model[at..at + bytes.len()].copy_from_slice(&bytes);
                    }
                }
                Step::Queue(commands) => {
                    // Each has its own twelve sectors.
                    for (tag, &(write, seed)) in (0u64..).zip(&commands) {
                        let (first, at) = (tag * 12 + u64::from(seed % 12), BUFFER + 0x1000 * tag);
                        let code = if write { 0x61 } else { 0x60 };
                        driver.memory.fill(GuestAddress(at), SECTOR, seed).unwrap();
                        driver.prepare(tag, &queued(code, tag, first, 1), &[], &[(at, 512)]);
                    }
                    driver.queue(((1u64 << commands.len()) - 1) as u32);
                    prop_assert_eq!((driver.port(0, PX_SACT), driver.port(0, PX_IS)), (0, is::DEVICE_BITS));
                    for (tag, &(write, seed)) in (0u64..).zip(&commands) {
                        let at = (tag * 12 + u64::from(seed % 12)) as usize * SECTOR;
                        if write {
                            model[at..at + SECTOR].fill(seed);
                        } else {
                            prop_assert!(driver.bytes(BUFFER + 0x1000 * tag, SECTOR) == model[at..at + SECTOR]);
                        }
                    }
                }
                Step::Cache(on) => {
                    prop_assert_eq!(driver.command(&fis(0xef, if on { 0x02 } else { 0x82 }, 0, 0x40, 0), &[]).0, 0);
                }
                Step::Flush => prop_assert_eq!(driver.command(&simple(0xea, 0, 0), &[]).0, 0),
                Step::Reset => {
                    driver.write(4, 1);
                    driver.start(0);
                }
            }
        }
        prop_assert!(control.bytes() == model);
    }

    #[test]
    fn no_command_register_or_memory_harms_the_disk(
        writes in prop::collection::vec((0..0x200u64, any::<u32>()), 1..60),
        commands in prop::collection::vec((0..32u64, any::<[u8; 16]>(), any::<[u8; 8]>()), 1..40),
        hold: bool,
    ) {
        let (driver, control) = one_disk();
        control.hold(hold);
        for (i, (slot, fis, entry)) in commands.iter().enumerate() {
            let [a, b, ..] = *entry;
            driver.prepare(*slot, &[&[0x27, 0x80], &fis[..]].concat(), &[], &[(BUFFER + u64::from(a) * 2, u32::from(b) + 1)]);
            driver.set_port(0, PX_SACT, u32::from(entry[2]) << (i % 24));
            driver.issue(0, 1 << slot);
            if let Some((offset, value)) = writes.get(i) {
                driver.write(offset & !3, *value);
                driver.read(*offset & !3);
                driver.run();
            }
        }
        control.hold(false);
        driver.resume_disk();
        driver.write(4, 1);
        prop_assert_eq!(driver.read(4), 1 << 31);
        driver.start(0);
        driver.identify();
        prop_assert_eq!(control.bytes().len(), pattern().len());
    }
}
