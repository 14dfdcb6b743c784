//! The SATA controller with a disk and a CD-ROM drive: any register, any command list, any memory, and requests that are
//! held back at the host while the guest goes on, resets, pauses or moves. Whatever it does, a reset brings a disk that
//! answers.
#![no_main]

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use orangery_fuzz::Choices;
use vmm_core::backend::disk::{Control, DiskError, Medium, MemoryDisk};
use vmm_core::base::{Component, GuestAddress, GuestMemory, InlineExecutor, Section};
use vmm_core::devices::ahci::{Ahci, AhciParts, Drive};
use vmm_core::hw::Bus;
use vmm_core::pci::{PciAddress, PciRoot, reg};
use vmm_core::testkit::{FakeLine, FakeMsi};

const RAM: u64 = 2 << 20;
const SIZE: usize = 64 * 512;
const BAR: u64 = 0xc000_0000;
const FUNCTION: usize = 0x1f << 3 | 2;
/// Where an honest driver has its structures.
const LIST: u64 = 0x1_0000;
const FISES: u64 = 0x1_1000;
const TABLES: u64 = 0x2_0000;
const BUFFER: u64 = 0x10_0000;
const STEPS: usize = 128;
/// Registers of a port.
const PX_CMD: u64 = 0x18;
const PX_SACT: u64 = 0x34;
const PX_CI: u64 = 0x38;
/// ATA commands that do something.
const COMMANDS: &[u8] = &[
    0x60, 0x61, 0x60, 0x61, 0x25, 0x35, 0xc8, 0xca, 0x20, 0x24, 0x30, 0x34, 0xc4, 0xc5, 0x3d, 0x06, 0x2f, 0x47, 0xea,
    0xef, 0xc6, 0x91, 0x27, 0xf8, 0x90, 0xec, 0xa0, 0xa1, 0x42, 0xe5,
];
/// Packet commands that do something.
const PACKETS: &[u8] = &[0x28, 0xa8, 0xbe, 0x12, 0x43, 0x46, 0x4a, 0x5a, 0x1b, 0x1e, 0x00, 0x03, 0x25, 0xad];

struct Machine {
    ahci: Arc<Ahci>,
    bus: Arc<Bus>,
    root: Arc<PciRoot>,
    memory: GuestMemory,
    executor: InlineExecutor,
    control: Control,
}

/// A disc of 16 blocks.
fn disc() -> Medium {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("orangery-fuzz-{}.iso", std::process::id()));
        std::fs::write(&path, [0x3c; 16 * 2048]).expect("a file");
        path
    });
    Medium::open(path).expect("a disc")
}

impl Machine {
    fn new(memory: GuestMemory, readonly: bool, has_disc: bool) -> Machine {
        let (disk, control) = MemoryDisk::new(vec![0x5a; SIZE], readonly);
        let executor = InlineExecutor::new().expect("an executor");
        let parts = AhciParts {
            name: "sata".into(),
            memory: memory.clone(),
            executor: Arc::new(executor.clone()),
            msi: Arc::new(FakeMsi::default()),
            line: Arc::new(FakeLine::default()),
            problems: Arc::new(|_, _| ()),
            stalls: Arc::new(|_, _| ()),
            ejected: Arc::new(|_| ()),
        };
        let drives = vec![Drive::Disk(Box::new(disk), "disk0".into()), Drive::Cd(has_disc.then(disc))];
        let ahci = Ahci::new(parts, drives).expect("a controller");
        let bus = Arc::new(Bus::default());
        let root = PciRoot::new(bus.clone(), Arc::new(Bus::default()));
        root.add(PciAddress::new(0x1f, 2), ahci.clone());
        Machine { ahci, bus, root, memory, executor, control }
    }

    fn map(&self) {
        self.root.write_config(FUNCTION, reg::BAR0 + 20, &(BAR as u32).to_le_bytes());
        self.root.write_config(FUNCTION, reg::COMMAND, &[6, 0]);
    }

    fn run(&self) {
        assert!(self.executor.turn(10_000), "the controller never comes to rest");
    }

    fn read(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.bus.read(BAR + offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write(&self, offset: u64, value: u32) {
        self.bus.write(BAR + offset, &value.to_le_bytes());
    }

    fn port(&self, port: u64, register: u64, value: u32) {
        self.write(0x100 + 0x80 * port + register, value);
    }

    /// Brings a port up as drivers do.
    fn start(&self, port: u64) {
        for (register, value) in
            [(0, LIST), (4, 0), (8, FISES), (12, 0), (PX_CMD, 0x16), (0x14, 0xffff_ffff), (PX_CMD, 0x17)]
        {
            self.port(port, register, value as u32);
        }
        self.write(4, 2);
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        // Whatever leaves RAM is not written.
        let _ = self.memory.write(GuestAddress(at), bytes);
    }

    /// Writes a command into a slot; whether it is queued.
    fn prepare(&self, slot: u64, choices: &mut Choices<'_>) -> bool {
        let code = if choices.u8() % 8 == 0 { choices.u8() } else { choices.one_of(COMMANDS) };
        let lba = if choices.u8() % 8 == 0 { choices.u64() } else { u64::from(choices.u8() % 80) };
        let [a, b, c, d, e, f, ..] = lba.to_le_bytes();
        let queued = matches!(code, 0x60 | 0x61);
        let count = choices.one_of(&[0, 1, 1, 2, 8, 63]);
        let (features, count) = if queued { (count, (slot as u8) << 3) } else { (choices.u8() % 4, count) };
        let device = choices.one_of(&[0x40, 0x40, 0xc0, 0x03, 0x4f]);
        let kind = if choices.u8() % 16 == 0 { choices.u8() } else { 0x80 };
        let fis = [0x27, kind, code, features, a, b, c, device, d, e, f, 0, count, 0, 0, choices.u8() & 4];
        let table = TABLES + 0x1000 * slot;
        self.put(table, &fis);
        let packet = [&[choices.one_of(PACKETS)], choices.bytes(11)].concat();
        self.put(table + 0x40, &packet);
        let entries = choices.u8() % 20;
        for entry in 0..u64::from(entries) {
            let address = if choices.u8() % 16 == 0 { choices.u64() } else { BUFFER + u64::from(choices.u16()) * 2 };
            let len = choices.one_of(&[512, 512, 512, 2, 510, 4096, 0x40_0000]) - 1;
            let words = [address as u32, (address >> 32) as u32, 0, len].map(u32::to_le_bytes);
            self.put(table + 0x80 + 16 * entry, words.as_flattened());
        }
        let len = if choices.u8() % 16 == 0 { choices.u8() & 0x1f } else { 5 };
        let flags = u32::from(len) | u32::from(entries) << 16;
        self.put(LIST + 32 * slot, [flags, 0, table as u32, 0].map(u32::to_le_bytes).as_flattened());
        queued
    }

    /// The same machine after a checkpoint.
    fn moved(self, readonly: bool) -> Machine {
        self.ahci.pause();
        let section: Section = self.ahci.save().expect("a state");
        // A disc that the guest ejected is not put in again.
        let other = Machine::new(self.memory.clone(), readonly, self.ahci.has_medium(1));
        other.ahci.pause();
        other.ahci.restore(&section).expect("its own state");
        assert_eq!(other.ahci.save().expect("a state"), section);
        other.root.refresh();
        other.ahci.resume();
        other
    }
}

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices::new(data);
    let readonly = choices.u8() % 8 == 7;
    let memory = GuestMemory::new(RAM).expect("memory");
    let mut machine = Machine::new(memory, readonly, true);
    machine.map();
    machine.start(0);
    machine.start(1);
    for _ in 0..STEPS {
        if !choices.any() {
            break;
        }
        match choices.u8() % 16 {
            // A command or several, as a driver sends them.
            0..=5 => {
                let (port, slot) = (u64::from(choices.u8() % 8 == 0), u64::from(choices.u8() % 32));
                if machine.prepare(slot, &mut choices) {
                    machine.port(port, PX_SACT, 1 << slot);
                }
                machine.port(port, PX_CI, 1 << slot);
            }
            6 => machine.run(),
            7 => machine.write(u64::from(choices.u16() % 0x480) & !3, choices.u32()),
            8 => {
                let (at, len) = (u64::from(choices.u32()) % RAM, usize::from(choices.u8()));
                machine.put(at, choices.bytes(len));
            }
            9 => machine.control.hold(true),
            10 if choices.u8() % 4 == 0 => machine.control.fail(Some(|| DiskError::Full)),
            10 => {
                machine.control.hold(false);
                machine.control.fail(None);
            }
            11 => {
                let port = u64::from(choices.u8() % 2);
                machine.port(port, PX_CMD, 0x16);
                machine.run();
                machine.start(port);
            }
            12 => machine.port(u64::from(choices.u8() % 2), 0x2c, choices.one_of(&[0x301, 0x300, 0x304, 0])),
            13 => {
                machine.root.write_config(FUNCTION, 0x40 + usize::from(choices.u8() % 0x60), choices.bytes(2));
            }
            14 if choices.u8() % 4 == 0 => {
                // Its bytes do not move along; what was written is checked by other tests.
                machine.control.hold(false);
                machine = machine.moved(readonly);
            }
            14 => {
                machine.ahci.pause();
                machine.ahci.resume();
            }
            _ => {
                machine.read(u64::from(choices.u16() % 0x480) & !3);
            }
        }
    }
    machine.control.hold(false);
    machine.control.fail(None);
    machine.ahci.pause();
    machine.ahci.resume();
    machine.run();
    // After the controller's reset, the disk says what it is.
    machine.map();
    machine.write(4, 1);
    assert_eq!(machine.read(4), 1 << 31, "the reset does not end");
    machine.start(0);
    machine.put(TABLES, &[0x27, 0x80, 0xec, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0]);
    machine.put(TABLES + 0x80, [BUFFER as u32, 0, 0, 511].map(u32::to_le_bytes).as_flattened());
    machine.put(LIST, [5 | 1 << 16, 0, TABLES as u32, 0].map(u32::to_le_bytes).as_flattened());
    machine.port(0, PX_CI, 1);
    machine.run();
    assert_eq!(machine.read(0x100 + PX_CI), 0, "a command does not end");
    let sectors: u16 = machine.memory.read_obj(GuestAddress(BUFFER + 120)).expect("RAM");
    assert_eq!(usize::from(sectors) * 512, SIZE);
    assert_eq!(machine.control.bytes().len(), SIZE);
});
