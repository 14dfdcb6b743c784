//! The controller through its PCI registers, by a driver that is honest or hostile.

use std::io::Write;

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::registers::is;
use super::*;
use crate::base::{GuestAddress, InlineExecutor};
use crate::hw::Bus;
use crate::pci::{PciAddress, PciRoot, reg};
use crate::testkit::{FakeLine, FakeMsi};

pub(super) const RAM: u64 = 8 << 20;
const BAR: u64 = 0xc000_0000;
const FUNCTION: usize = 0x1f << 3 | 2;
pub(super) const LIST: u64 = 0x1_0000;
pub(super) const FISES: u64 = 0x2_0000;
pub(super) const TABLES: u64 = 0x3_0000;
pub(super) const BUFFER: u64 = 0x10_0000;

pub(super) const PX_IS: u64 = 0x10;
pub(super) const PX_IE: u64 = 0x14;
pub(super) const PX_CMD: u64 = 0x18;
pub(super) const PX_TFD: u64 = 0x20;
pub(super) const PX_SIG: u64 = 0x24;
pub(super) const PX_SSTS: u64 = 0x28;
pub(super) const PX_SCTL: u64 = 0x2c;
pub(super) const PX_SACT: u64 = 0x34;
pub(super) const PX_CI: u64 = 0x38;

pub(super) struct Driver {
    pub ahci: Arc<Ahci>,
    bus: Arc<Bus>,
    pub root: Arc<PciRoot>,
    pub memory: GuestMemory,
    executor: InlineExecutor,
    pub msi: FakeMsi,
    line: FakeLine,
    ejected: Arc<Mutex<Vec<usize>>>,
    pub problems: Arc<Mutex<Vec<String>>>,
    pub stalls: Arc<Mutex<Vec<String>>>,
}

/// A disc on which byte `i` tells where it is.
fn iso(blocks: usize) -> (NamedTempFile, Vec<u8>) {
    let bytes: Vec<u8> = (0..blocks * 2048).map(|i| (i / 2048 * 3 + i * 5) as u8).collect();
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    (file, bytes)
}

fn medium(file: &NamedTempFile) -> Medium {
    Medium::open(file.path()).unwrap()
}

impl Driver {
    fn new(drives: Vec<Option<Medium>>) -> Driver {
        Driver::with(drives.into_iter().map(Drive::Cd).collect())
    }

    pub fn with(drives: Vec<Drive>) -> Driver {
        let memory = GuestMemory::new(RAM).unwrap();
        let executor = InlineExecutor::new().unwrap();
        let (msi, line) = (FakeMsi::default(), FakeLine::default());
        let ejected: Arc<Mutex<Vec<usize>>> = Arc::default();
        let problems: Arc<Mutex<Vec<String>>> = Arc::default();
        let stalls: Arc<Mutex<Vec<String>>> = Arc::default();
        let (told, log, stalled) = (ejected.clone(), problems.clone(), stalls.clone());
        let parts = AhciParts {
            name: "ahci".into(),
            memory: memory.clone(),
            executor: Arc::new(executor.clone()),
            msi: Arc::new(msi.clone()),
            line: Arc::new(line.clone()),
            problems: Arc::new(move |_, message| lock(&log).push(message)),
            stalls: Arc::new(move |_, message| lock(&stalled).push(message)),
            ejected: Arc::new(move |drive| lock(&told).push(drive)),
        };
        let ahci = Ahci::new(parts, drives).unwrap();
        let bus = Arc::new(Bus::default());
        let root = PciRoot::new(bus.clone(), Arc::new(Bus::default()));
        root.add(PciAddress::new(0x1f, 2), ahci.clone());
        let driver = Driver { ahci, bus, root, memory, executor, msi, line, ejected, problems, stalls };
        driver.map();
        driver
    }

    pub fn map(&self) {
        self.root.write_config(FUNCTION, reg::BAR0 + 20, &(BAR as u32).to_le_bytes());
        self.root.write_config(FUNCTION, reg::COMMAND, &[6, 0]);
    }

    pub fn run(&self) {
        assert!(self.executor.turn(1000), "the controller never comes to rest");
    }

    pub fn read(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.bus.read(BAR + offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub fn write(&self, offset: u64, value: u32) {
        self.bus.write(BAR + offset, &value.to_le_bytes());
    }

    pub fn port(&self, port: u64, register: u64) -> u32 {
        self.read(0x100 + 0x80 * port + register)
    }

    pub fn set_port(&self, port: u64, register: u64, value: u32) {
        self.write(0x100 + 0x80 * port + register, value);
    }

    /// Brings a port up as drivers do.
    pub fn start(&self, port: u64) {
        for (register, value) in [(0, LIST), (8, FISES)] {
            self.set_port(port, register, value as u32);
            self.set_port(port, register + 4, 0);
        }
        self.set_port(port, PX_CMD, 0x16);
        assert_eq!(self.port(port, PX_CMD), 0x4016);
        self.set_port(port, PX_IE, u32::MAX);
        self.write(4, 2);
        self.set_port(port, PX_CMD, 0x17);
        assert_eq!(self.port(port, PX_CMD) & 0xc01f, 0xc017);
    }

    fn started(drives: Vec<Option<Medium>>) -> Driver {
        let driver = Driver::new(drives);
        driver.start(0);
        driver
    }

    /// Writes a command into a slot.
    pub fn prepare(&self, slot: u64, fis: &[u8], packet: &[u8], list: &[(u64, u32)]) {
        let table = TABLES + 0x1000 * slot;
        self.memory.fill(GuestAddress(table), 0x1000, 0).unwrap();
        self.memory.write(GuestAddress(table), fis).unwrap();
        self.memory.write(GuestAddress(table + 0x40), packet).unwrap();
        for (i, &(address, len)) in list.iter().enumerate() {
            let entry: [u32; 4] = [address as u32, (address >> 32) as u32, 0, len - 1];
            self.memory.write_obj(GuestAddress(table + 0x80 + 16 * i as u64), entry).unwrap();
        }
        let flags = 5 | if packet.is_empty() { 0 } else { 1 << 5 } | (list.len() as u32) << 16;
        self.memory.write_obj(GuestAddress(LIST + 32 * slot), [flags, 0, table as u32, 0]).unwrap();
    }

    pub fn issue(&self, port: u64, slots: u32) {
        self.set_port(port, PX_CI, slots);
        self.run();
    }

    /// Sends a packet and returns the sense key (0: good), and as many bytes as were transferred.
    fn packet(&self, packet: &[u8], room: usize) -> (u8, Vec<u8>) {
        self.memory.fill(GuestAddress(BUFFER), room.max(1), 0xcc).unwrap();
        let list: &[(u64, u32)] = if room == 0 { &[] } else { &[(BUFFER, room as u32)] };
        self.prepare(0, &[0x27, 0x80, 0xa0, 1], packet, list);
        self.set_port(0, PX_IS, u32::MAX);
        self.issue(0, 1);
        let task_file = self.port(0, PX_TFD);
        let done: u32 = self.memory.read_obj(GuestAddress(LIST + 4)).unwrap();
        let mut bytes = vec![0; done as usize];
        self.memory.read(GuestAddress(BUFFER), &mut bytes).unwrap();
        if task_file & 1 == 0 {
            assert_eq!((self.port(0, PX_CI), self.port(0, PX_IS)), (0, is::D2H));
            assert_eq!(task_file, 0x50);
            return (0, bytes);
        }
        assert_eq!((self.port(0, PX_CI), self.port(0, PX_IS)), (1, is::D2H | is::TASK_FILE_ERROR));
        self.recover();
        ((task_file >> 12) as u8, bytes)
    }

    /// Gets over an error as drivers do (§6.2.2.1).
    pub fn recover(&self) {
        self.set_port(0, PX_CMD, 0x16);
        assert_eq!(self.port(0, PX_CMD) & 0x8001, 0);
        assert_eq!((self.port(0, PX_CI), self.port(0, PX_SACT)), (0, 0));
        self.set_port(0, PX_IS, u32::MAX);
        self.set_port(0, PX_CMD, 0x17);
    }

    fn sense(&self) -> (u8, u8, u8) {
        let (key, bytes) = self.packet(&[0x03, 0, 0, 0, 18], 18);
        assert_eq!((key, bytes.len()), (0, 18));
        (bytes[2], bytes[12], bytes[13])
    }
}

fn read_10(block: u32, count: u16) -> [u8; 12] {
    let (b, c) = (block.to_be_bytes(), count.to_be_bytes());
    [0x28, 0, b[0], b[1], b[2], b[3], 0, c[0], c[1], 0, 0, 0]
}

fn one_disc() -> (Driver, Vec<u8>, NamedTempFile) {
    let (file, bytes) = iso(40);
    (Driver::started(vec![Some(medium(&file))]), bytes, file)
}

#[test]
fn the_function_is_ich9s_sata_controller_in_ahci_mode() {
    let driver = Driver::new(vec![None]);
    let word = |offset| {
        let mut bytes = [0; 4];
        driver.root.read_config(FUNCTION, offset, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    assert_eq!((word(0), word(8) >> 8, word(0x2c)), (0x2922_8086, 0x01_0601, 0x1100_1af4));
    driver.root.write_config(FUNCTION, reg::BAR0 + 20, &[0xff; 4]);
    assert_eq!(word(reg::BAR0 + 20), !0xfff);
}

#[test]
fn ports_show_which_have_a_drive() {
    let driver = Driver::new(vec![None, None]);
    assert_eq!(driver.read(0), 0xc134_1f05);
    assert_eq!((driver.read(4), driver.read(0xc), driver.read(0x10)), (1 << 31, 3, 0x10301));
    assert_eq!((driver.port(1, PX_SSTS), driver.port(1, PX_SIG), driver.port(1, PX_TFD)), (0x133, 0xeb14_0101, 0x150));
    assert_eq!((driver.port(2, PX_SSTS), driver.port(2, PX_SIG), driver.port(2, PX_TFD)), (0, u32::MAX, 0x7f));
    assert_eq!(driver.port(0, PX_CMD), 6);
    // The drive says what it is as soon as there is room for its FIS.
    driver.start(0);
    let fis: [u8; 20] = driver.memory.read_obj(GuestAddress(FISES + 0x40)).unwrap();
    assert_eq!(fis[..8], [0x34, 0, 0x50, 1, 1, 0x14, 0xeb, 0]);
}

#[test]
fn the_drive_identifies_itself_by_programmed_input() {
    let (driver, ..) = one_disc();
    driver.prepare(3, &[0x27, 0x80, 0xa1], &[], &[(BUFFER, 512)]);
    driver.issue(0, 1 << 3);
    assert_eq!((driver.port(0, PX_CI), driver.port(0, PX_IS), driver.port(0, PX_TFD)), (0, is::PIO_SETUP, 0x50));
    let words: [u16; 30] = driver.memory.read_obj(GuestAddress(BUFFER)).unwrap();
    assert_eq!(words[0], 0x85c0);
    assert_eq!(words[27].to_be_bytes(), *b"Or");
    let setup: [u8; 20] = driver.memory.read_obj(GuestAddress(FISES + 0x20)).unwrap();
    assert_eq!((setup[0], setup[2], setup[15], setup[16], setup[17]), (0x5f, 0x58, 0x50, 0, 2));
    let done: u32 = driver.memory.read_obj(GuestAddress(LIST + 32 * 3 + 4)).unwrap();
    assert_eq!(done, 512);
}

#[test]
fn identify_device_is_aborted_with_the_signature_and_the_port_recovers() {
    let (driver, ..) = one_disc();
    driver.prepare(0, &[0x27, 0x80, 0xec], &[], &[(BUFFER, 512)]);
    driver.issue(0, 1);
    assert_eq!((driver.port(0, PX_TFD), driver.port(0, PX_CI)), (0x0451, 1));
    let fis: [u8; 20] = driver.memory.read_obj(GuestAddress(FISES + 0x40)).unwrap();
    assert_eq!(fis[..8], [0x34, 0x40, 0x51, 4, 1, 0x14, 0xeb, 0]);
    // Nothing runs before software has seen to the error.
    driver.issue(0, 2);
    assert_eq!(driver.port(0, PX_CI), 3);
    driver.recover();
    assert_eq!(driver.packet(&[0; 12], 0).0, 0);
}

#[test]
fn blocks_are_read_byte_by_byte_through_any_scatter_list() {
    let (driver, bytes, _file) = one_disc();
    assert_eq!(driver.packet(&read_10(3, 2), 4096), (0, bytes[3 * 2048..5 * 2048].to_vec()));
    let list = [(BUFFER, 2), (BUFFER + 0x1000, 2046), (BUFFER + 0x2002, 3000), (BUFFER + 0x4000, 5000)];
    driver.prepare(0, &[0x27, 0x80, 0xa0, 1], &read_10(0, 3), &list);
    driver.issue(0, 1);
    let mut seen = Vec::new();
    for (at, len) in list {
        let mut part = vec![0; len as usize];
        driver.memory.read(GuestAddress(at), &mut part).unwrap();
        seen.extend(part);
    }
    assert!(seen[..3 * 2048] == bytes[..3 * 2048]);
    let done: u32 = driver.memory.read_obj(GuestAddress(LIST + 4)).unwrap();
    assert_eq!(done, 3 * 2048);
    // READ(12) and READ CD give the same, and a list that is too short gets what it has room for.
    assert_eq!(driver.packet(&[0xa8, 0, 0, 0, 0, 3, 0, 0, 0, 2], 4096).1, bytes[3 * 2048..5 * 2048]);
    assert_eq!(driver.packet(&[0xbe, 0, 0, 0, 0, 3, 0, 0, 2, 0x10], 4096).1, bytes[3 * 2048..5 * 2048]);
    assert_eq!(driver.packet(&read_10(0, 2), 1000), (0, bytes[..1000].to_vec()));
}

#[test]
fn a_large_read_goes_through_in_pieces() {
    let (file, bytes) = iso(800);
    let driver = Driver::started(vec![Some(medium(&file))]);
    assert!(driver.packet(&read_10(1, 799), 799 * 2048) == (0, bytes[2048..].to_vec()));
}

#[test]
fn a_disc_that_ends_inside_a_block_is_filled_with_zeroes() {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&[7; 5000]).unwrap();
    let driver = Driver::started(vec![Some(medium(&file))]);
    assert_eq!(driver.packet(&[0x25; 1], 8).1, [0, 0, 0, 2, 0, 0, 8, 0]);
    let (_, read) = driver.packet(&read_10(2, 1), 2048);
    assert!(read[..5000 - 4096] == [7; 904] && read[904..].iter().all(|&b| b == 0) && read.len() == 2048);
}

#[test]
fn reads_beyond_the_disc_and_unknown_packets_give_their_sense() {
    let (driver, ..) = one_disc();
    assert_eq!(driver.packet(&read_10(39, 2), 4096), (5, vec![]));
    assert_eq!(driver.sense(), (5, 0x21, 0));
    assert_eq!(driver.sense(), (0, 0, 0));
    assert_eq!(driver.packet(&[0xa8, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], 4096).0, 5);
    assert_eq!(driver.packet(&[0xff; 12], 0).0, 5);
    assert_eq!(driver.sense(), (5, 0x20, 0));
    assert_eq!(driver.packet(&[0xbe, 0, 0, 0, 0, 0, 0, 0, 1, 0xf8], 2352).0, 5);
    assert_eq!(driver.sense(), (5, 0x64, 0));
}

#[test]
fn an_empty_drive_says_so_and_a_medium_put_in_is_announced() {
    let driver = Driver::started(vec![None]);
    assert_eq!(driver.packet(&[0; 12], 0).0, 2);
    assert_eq!(driver.sense(), (2, 0x3a, 1));
    assert_eq!(driver.packet(&read_10(0, 1), 2048).0, 2);
    let (file, bytes) = iso(4);
    driver.ahci.change(0, Some(medium(&file)), false).unwrap();
    assert_eq!(driver.packet(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8], 8).1, [0, 6, 4, 0x10, 2, 2, 0, 0]);
    assert_eq!(driver.packet(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8], 8).1, [0, 6, 4, 0x10, 0, 2, 0, 0]);
    assert_eq!(driver.packet(&[0; 12], 0).0, 6);
    assert_eq!(driver.sense(), (6, 0x28, 0));
    assert_eq!(driver.packet(&[0; 12], 0).0, 0);
    assert_eq!(driver.packet(&read_10(0, 1), 2048).1, bytes[..2048]);
    assert!(driver.ahci.change(1, None, false) == Err(ChangeError::NoDrive(1)));
}

#[test]
fn the_guest_ejects_and_a_locked_tray_is_let_go_of_on_request() {
    let (driver, _, file) = one_disc();
    let lock_tray = |on: u8| driver.packet(&[0x1e, 0, 0, 0, on], 0).0;
    let eject = || driver.packet(&[0x1b, 0, 0, 0, 2], 0).0;
    assert_eq!((lock_tray(1), eject()), (0, 5));
    assert_eq!(driver.sense(), (5, 0x53, 2));
    assert_eq!(driver.ahci.change(0, None, false), Err(ChangeError::Locked(0)));
    assert_eq!(driver.packet(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8], 8).1[4], 1, "asked to eject");
    assert!(driver.ahci.has_medium(0));
    assert_eq!((lock_tray(0), eject()), (0, 0));
    assert_eq!((lock(&driver.ejected).clone(), driver.ahci.has_medium(0)), (vec![0], false));
    assert_eq!(driver.packet(&[0; 12], 0).0, 2);
    assert_eq!(driver.sense(), (2, 0x3a, 2), "the tray is open");
    assert_eq!(driver.packet(&[0x1b, 0, 0, 0, 3], 0).0, 0);
    driver.packet(&[0; 12], 0);
    assert_eq!(driver.sense(), (2, 0x3a, 1), "closed and empty");
    driver.ahci.change(0, Some(medium(&file)), false).unwrap();
    lock_tray(1);
    lock_tray(1);
    driver.ahci.change(0, None, true).unwrap();
    assert!(!driver.ahci.has_medium(0));
}

#[test]
fn what_installers_ask_is_answered() {
    let (driver, ..) = one_disc();
    let (key, inquiry) = driver.packet(&[0x12, 0, 0, 0, 36], 36);
    assert_eq!((key, inquiry.len(), inquiry[0], inquiry[1], &inquiry[8..16]), (0, 36, 5, 0x80, &b"ORANGERY"[..]));
    // A table of contents: one data track, and the lead-out.
    let (_, toc) = driver.packet(&[0x43, 0, 0, 0, 0, 0, 0, 0, 100], 100);
    assert_eq!(toc, [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xaa, 0, 0, 0, 0, 40]);
    let (_, toc) = driver.packet(&[0x43, 2, 0, 0, 0, 0, 0xaa, 0, 100], 100);
    assert_eq!(toc, [0, 10, 1, 1, 0, 0x14, 0xaa, 0, 0, 0, 2, 40]);
    assert_eq!(driver.packet(&[0x43, 0, 0, 0, 0, 0, 2, 0, 100], 100).0, 5);
    let (_, pages) = driver.packet(&[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 28], 28);
    assert_eq!((pages.len(), pages[1], pages[8], pages[9], pages[14]), (28, 26, 0x2a, 0x12, 0x29));
    assert_eq!(driver.packet(&[0x5a, 0, 0x3f, 0, 0, 0, 0, 1, 0], 256).1.len(), 8 + 8 + 16 + 20);
    assert_eq!(driver.packet(&[0x5a, 0, 0x05, 0, 0, 0, 0, 1, 0], 256).0, 5);
    let (_, config) = driver.packet(&[0x46, 0, 0, 0, 0, 0, 0, 1, 0], 256);
    assert_eq!(u32::from_be_bytes(config[..4].try_into().unwrap()) as usize, config.len() - 4);
    assert_eq!(config[6..8], [0, 8], "a CD");
    assert_eq!(driver.packet(&[0x46, 2, 0, 0x10, 0, 0, 0, 1, 0], 256).1.len(), 8 + 12);
    assert_eq!(driver.packet(&[0x51, 0, 0, 0, 0, 0, 0, 0, 34], 34).1.len(), 34);
    assert_eq!(driver.packet(&[0x52, 0, 0, 0, 0, 0, 0, 0, 36], 36).1[24..28], [0, 0, 0, 40]);
    assert_eq!(driver.packet(&[0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 8], 8).1.len(), 8);
    assert_eq!(driver.packet(&[0x42, 2, 0x40, 1, 0, 0, 0, 0, 16], 16).1.len(), 16);
    assert_eq!(driver.packet(&[0xad, 0, 0, 0, 0, 0, 0, 0, 8], 8).0, 5, "no DVD");
    for packet in [[0x1b, 0, 0, 0, 1], [0x35, 0, 0, 0, 0], [0xbb, 0, 0xff, 0xff, 0], [0x1e, 0, 0, 0, 0]] {
        assert_eq!(driver.packet(&packet, 0).0, 0, "{packet:x?}");
    }
    // What the guest has no room for is not sent.
    assert_eq!(driver.packet(&[0x12, 0, 0, 0, 5], 36).1.len(), 5);
}

#[test]
fn a_large_disc_is_a_dvd() {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(4 << 30).unwrap();
    let driver = Driver::started(vec![Some(medium(&file))]);
    assert_eq!(driver.packet(&[0x46, 0, 0, 0, 0, 0, 0, 0, 8], 8).1[6..8], [0, 0x10]);
    let (key, structure) = driver.packet(&[0xad, 0, 0, 0, 0, 0, 0, 0, 8, 4], 2052);
    assert_eq!((key, structure.len()), (0, 2052));
    assert_eq!(structure[13..16], (0x3_0000u32 + (2 << 20) - 1).to_be_bytes()[1..]);
}

#[test]
fn commands_of_several_slots_all_run() {
    let (driver, bytes, _file) = one_disc();
    for slot in 0..32u64 {
        let at = BUFFER + 0x1000 * slot;
        driver.prepare(slot, &[0x27, 0x80, 0xa0, 1], &read_10(slot as u32, 1), &[(at, 2048)]);
    }
    driver.issue(0, u32::MAX);
    assert_eq!(driver.port(0, PX_CI), 0);
    for slot in 0..32usize {
        let mut seen = vec![0; 2048];
        driver.memory.read(GuestAddress(BUFFER + 0x1000 * slot as u64), &mut seen).unwrap();
        assert!(seen == bytes[slot * 2048..(slot + 1) * 2048]);
    }
}

#[test]
fn the_line_follows_the_status_and_a_message_comes_for_each_event() {
    let (driver, ..) = one_disc();
    driver.packet(&[0; 12], 0);
    assert!(driver.line.level());
    driver.set_port(0, PX_IS, u32::MAX);
    assert!(driver.line.level(), "the controller's own status is still set");
    driver.write(8, 1);
    assert!(!driver.line.level());
    // INTx off, then messages.
    driver.root.write_config(FUNCTION, reg::COMMAND, &[6, 4]);
    driver.packet(&[0; 12], 0);
    assert!(!driver.line.level());
    driver.set_port(0, PX_IS, u32::MAX);
    driver.write(8, 1);
    driver.root.write_config(FUNCTION, 0x44, &0xfee0_0000u32.to_le_bytes());
    driver.root.write_config(FUNCTION, 0x4c, &[0x41, 0]);
    driver.root.write_config(FUNCTION, 0x42, &[1, 0]);
    assert!(driver.msi.take().is_empty());
    driver.packet(&[0; 12], 0);
    assert_eq!(driver.msi.take(), [MsiMessage { address: 0xfee0_0000, data: 0x41 }]);
    driver.set_port(0, PX_IS, u32::MAX);
    assert!(driver.msi.take().is_empty(), "clearing is no event");
    // One that came before the controller's status was cleared is told again.
    driver.prepare(0, &[0x27, 0x80, 0xa0, 1], &[0; 12], &[]);
    driver.issue(0, 1);
    driver.msi.take();
    driver.write(8, 1);
    assert_eq!((driver.msi.take().len(), driver.read(8)), (1, 1));
    // Not enabled in the port: nothing is told.
    driver.set_port(0, PX_IE, 0);
    driver.set_port(0, PX_IS, u32::MAX);
    driver.write(8, 1);
    driver.packet(&[0; 12], 0);
    assert!(driver.msi.take().is_empty());
}

#[test]
fn every_reset_brings_the_drive_back_ready() {
    let (driver, ..) = one_disc();
    // COMRESET.
    driver.set_port(0, PX_CMD, 0x16);
    driver.set_port(0, PX_SCTL, 0x301);
    assert_eq!((driver.port(0, PX_SSTS), driver.port(0, PX_TFD)), (0, 0x80));
    driver.set_port(0, PX_SCTL, 0x300);
    assert_eq!((driver.port(0, PX_SSTS), driver.port(0, PX_TFD), driver.port(0, PX_SIG)), (0x133, 0x150, 0xeb14_0101));
    driver.set_port(0, PX_CMD, 0x17);
    assert_eq!(driver.packet(&[0; 12], 0).0, 0);
    // Software reset: control register with SRST, then without.
    for control in [4, 0] {
        driver.prepare(0, &[0x27, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, control], &[], &[]);
        driver.issue(0, 1);
        assert_eq!(driver.port(0, PX_CI), 0);
    }
    assert_eq!(driver.port(0, PX_TFD), 0x150);
    let fis: [u8; 20] = driver.memory.read_obj(GuestAddress(FISES + 0x40)).unwrap();
    assert_eq!(fis[..8], [0x34, 0, 0x50, 1, 1, 0x14, 0xeb, 0]);
    assert_eq!(driver.packet(&[0; 12], 0).0, 0);
    // The controller's own.
    driver.write(4, 1);
    assert_eq!((driver.read(4), driver.port(0, PX_CMD), driver.port(0, 0)), (1 << 31, 6, 0));
    driver.start(0);
    assert_eq!(driver.packet(&[0; 12], 0).0, 0);
    // The machine's.
    driver.ahci.pause();
    driver.ahci.reset();
    driver.ahci.resume();
    let mut command = [0];
    driver.root.read_config(FUNCTION, reg::COMMAND, &mut command);
    assert_eq!(command, [0]);
    driver.map();
    driver.start(0);
    assert_eq!(driver.packet(&[0; 12], 0).0, 0);
}

#[test]
fn structures_outside_ram_are_a_host_bus_error_that_a_restart_gets_over() {
    let far = [0xffff_ffff_ffff_fc00, 0xffff_fc00, RAM];
    for address in far {
        let (driver, ..) = one_disc();
        let fatal = |what| {
            driver.issue(0, 1);
            assert_eq!(driver.port(0, PX_IS) & is::HOST_BUS_FATAL, is::HOST_BUS_FATAL, "{what} at {address:#x}");
            assert_eq!(driver.port(0, PX_CI), 1);
            for (register, value) in [(0, LIST), (8, FISES)] {
                driver.set_port(0, register, value as u32);
                driver.set_port(0, register + 4, 0);
            }
            driver.recover();
            assert_eq!(driver.packet(&[0; 12], 0).0, 0);
        };
        let identify = |list: &[(u64, u32)]| driver.prepare(0, &[0x27, 0x80, 0xa1], &[], list);
        identify(&[(BUFFER, 512)]);
        driver.set_port(0, 0, address as u32);
        driver.set_port(0, 4, (address >> 32) as u32);
        fatal("the list");
        identify(&[(BUFFER, 512)]);
        driver.set_port(0, 8, address as u32);
        driver.set_port(0, 12, (address >> 32) as u32);
        fatal("the FISes");
        identify(&[(BUFFER, 256), (address, 256)]);
        fatal("a buffer");
        identify(&[(BUFFER, 512)]);
        driver.memory.write_obj(GuestAddress(LIST + 8), [address as u32, (address >> 32) as u32]).unwrap();
        fatal("the table");
    }
}

#[test]
fn the_longest_list_of_the_smallest_buffers_ends() {
    let (driver, bytes, _file) = one_disc();
    driver.prepare(0, &[0x27, 0x80, 0xa0, 1], &read_10(0, 40), &[]);
    // 65535 entries of two bytes each: more than the disc has.
    let table = 0x20_0000;
    driver.memory.write(GuestAddress(table), &[0x27, 0x80, 0xa0, 1]).unwrap();
    driver.memory.write(GuestAddress(table + 0x40), &read_10(0, 40)).unwrap();
    for i in 0..65535u64 {
        let entry: [u32; 4] = [(BUFFER + 2 * i) as u32, 0, 0, 1];
        driver.memory.write_obj(GuestAddress(table + 0x80 + 16 * i), entry).unwrap();
    }
    driver.memory.write_obj(GuestAddress(LIST), [5u32 | 1 << 5 | 65535 << 16, 0, table as u32, 0]).unwrap();
    driver.issue(0, 1);
    assert_eq!(driver.port(0, PX_CI), 0);
    let mut seen = vec![0; 40 * 2048];
    driver.memory.read(GuestAddress(BUFFER), &mut seen).unwrap();
    assert!(seen == bytes);
}

#[test]
fn a_port_that_is_stopped_or_has_no_drive_runs_nothing() {
    let (driver, ..) = one_disc();
    driver.prepare(0, &[0x27, 0x80, 0xa1], &[], &[(BUFFER, 512)]);
    driver.set_port(0, PX_CMD, 0x16);
    driver.issue(0, 1);
    assert_eq!((driver.port(0, PX_CI), driver.port(0, PX_IS)), (0, 0));
    driver.start(3);
    driver.issue(3, 1);
    assert_eq!((driver.port(3, PX_CI), driver.port(3, PX_IS)), (1, 0));
}

#[test]
fn a_disc_whose_file_was_cut_short_is_unreadable_there() {
    let (driver, _, file) = one_disc();
    file.as_file().set_len(2048).unwrap();
    assert_eq!(driver.packet(&read_10(10, 1), 2048).0, 3);
    assert_eq!(driver.sense(), (3, 0x11, 0));
    assert_eq!(lock(&driver.problems).len(), 1);
    assert_eq!(driver.packet(&read_10(0, 1), 2048).0, 0);
}

#[test]
fn a_checkpoint_goes_on_in_another_controller() {
    let (file, bytes) = iso(40);
    let driver = Driver::started(vec![Some(medium(&file)), None]);
    driver.packet(&read_10(100, 1), 2048);
    driver.ahci.pause();
    driver.prepare(0, &[0x27, 0x80, 0xa0, 1], &read_10(7, 1), &[(BUFFER, 2048)]);
    driver.issue(0, 1);
    assert_eq!(driver.port(0, PX_CI), 1, "nothing runs while paused");
    let section = driver.ahci.save().unwrap();
    let mut other = Driver::new(vec![Some(medium(&file)), None]);
    other.ahci.pause();
    other.ahci.restore(&section).unwrap();
    assert_eq!(other.ahci.save().unwrap(), section);
    other.root.refresh();
    let mut ram = vec![0; RAM as usize];
    driver.memory.read(GuestAddress(0), &mut ram).unwrap();
    other.memory.write(GuestAddress(0), &ram).unwrap();
    other.ahci.resume();
    other.run();
    assert_eq!(other.port(0, PX_CI), 0);
    let mut seen = vec![0; 2048];
    other.memory.read(GuestAddress(BUFFER), &mut seen).unwrap();
    assert!(seen == bytes[7 * 2048..8 * 2048]);
    // Without the disc, the guest hears of it; with other drives, nothing is restored.
    other = Driver::new(vec![None, None]);
    other.ahci.pause();
    other.ahci.restore(&section).unwrap();
    assert!(!other.ahci.has_medium(0));
    assert!(Driver::new(vec![None]).ahci.restore(&section).is_err());
    let damaged = Section { bytes: section.bytes[..20].to_vec(), ..section };
    assert!(other.ahci.restore(&damaged).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_packet_harms_the_drive(packets in prop::collection::vec((any::<[u8; 12]>(), 0..4096usize), 1..20)) {
        let (driver, bytes, _file) = one_disc();
        for (packet, room) in packets {
            driver.packet(&packet, room & !1);
        }
        if driver.ahci.has_medium(0) {
            // Whatever is pending is told first.
            driver.packet(&[0; 12], 0);
            prop_assert_eq!(&driver.packet(&read_10(5, 1), 2048).1, &bytes[5 * 2048..6 * 2048]);
        }
    }

    #[test]
    fn no_register_or_memory_harms_the_controller(
        writes in prop::collection::vec((0..0x400u64, any::<u32>()), 1..60), seed: [u8; 32],
    ) {
        let (driver, ..) = one_disc();
        for (i, &byte) in seed.iter().enumerate() {
            driver.memory.write(GuestAddress(LIST + i as u64 * 5), &[byte]).unwrap();
            driver.memory.write(GuestAddress(TABLES + i as u64 * 7), &[byte]).unwrap();
        }
        for (offset, value) in writes {
            driver.write(offset & !3, value);
            driver.read(offset);
            driver.run();
        }
        driver.write(4, 1);
        prop_assert_eq!(driver.read(4), 1 << 31);
        driver.start(0);
        driver.packet(&[0; 12], 0);
    }
}
