//! The virtio PCI transport: any accesses to configuration space (its window to the BAR, MSI-X, BARs that move) and to the
//! BAR, of any size, while queues run. Whatever was done, a reset by status brings a device that answers.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use orangery_fuzz::Choices;
use vmm_core::base::{Component, GuestAddress, GuestMemory, InlineExecutor};
use vmm_core::devices::virtio_rng::Rng;
use vmm_core::hw::{Bus, BusDevice};
use vmm_core::pci::{PciAddress, PciRoot, reg};
use vmm_core::testkit::{FakeLine, FakeMsi, NoDoorbells};
use vmm_core::virtio::{Layout, TransportParts, VirtioPci};

const RAM: u64 = 1 << 20;
const BAR: u64 = 0xc000_0000;
const FUNCTION: usize = 1 << 3;
const STEPS: usize = 200;
const RINGS: u64 = 0x1_0000;

struct Machine {
    transport: Arc<VirtioPci<Rng>>,
    root: Arc<PciRoot>,
    bus: Arc<Bus>,
    memory: GuestMemory,
    executor: InlineExecutor,
    layout: Layout,
}

impl Machine {
    fn new(memory: GuestMemory, plain: bool) -> Machine {
        let executor = InlineExecutor::new().expect("an executor");
        let layout = if plain { Layout::PLAIN } else { Layout::VGA };
        let parts = TransportParts {
            name: "rng".into(),
            memory: memory.clone(),
            executor: Arc::new(executor.clone()),
            msi: Arc::new(FakeMsi::default()),
            line: Arc::new(FakeLine::default()),
            doorbells: Arc::new(NoDoorbells),
            problems: Arc::new(|_, _| ()),
            stalls: Arc::new(|_, _| ()),
            layout,
            face: None,
        };
        let transport = VirtioPci::new(Rng::default(), parts).expect("a transport");
        let bus = Arc::new(Bus::default());
        let root = PciRoot::new(bus.clone(), Arc::new(Bus::default()));
        root.add(PciAddress::new(1, 0), transport.clone());
        Machine { transport, root, bus, memory, executor, layout }
    }

    fn map(&self) {
        let bar = reg::BAR0 + 4 * usize::from(self.layout.bar);
        self.root.write_config(FUNCTION, bar, &(BAR as u32).to_le_bytes());
        self.root.write_config(FUNCTION, reg::COMMAND, &[6, 0]);
    }

    fn common(&self, field: u64, data: &[u8]) {
        self.bus.write(BAR + u64::from(self.layout.common) + field, data);
    }

    fn run(&self) {
        assert!(self.executor.turn(10_000), "the device never comes to rest");
    }

    /// Brings the device up as drivers do, with rings that are in RAM.
    fn start(&self) {
        for status in [0u8, 1, 3] {
            self.common(0x14, &[status]);
            self.run();
        }
        for (select, features) in [(0u32, 0u32), (1, 1)] {
            self.common(0x08, &select.to_le_bytes());
            self.common(0x0c, &features.to_le_bytes());
        }
        self.common(0x14, &[0xb]);
        self.common(0x16, &[0, 0]);
        self.common(0x18, &8u16.to_le_bytes());
        for (field, address) in [(0x20, RINGS), (0x28, RINGS + 0x1000), (0x30, RINGS + 0x2000)] {
            self.common(field, &address.to_le_bytes());
        }
        self.common(0x1a, &1u16.to_le_bytes());
        self.common(0x1c, &1u16.to_le_bytes());
        self.common(0x14, &[0xf]);
    }

    /// A register of the transport, or one just behind.
    fn register(&self, choices: &mut Choices<'_>) -> u64 {
        let Layout { bar: _, common, isr, device, notify, table, pba } = self.layout;
        let parts = [(common, 0x40), (common, 0x40), (isr, 4), (device, 16), (notify, 8), (table, 64), (pba, 16)];
        let (start, len) = choices.one_of(&parts);
        BAR + u64::from(start) + u64::from(choices.u8()) % len
    }

    fn status(&self) -> u8 {
        let mut byte = [0];
        self.bus.read(BAR + u64::from(self.layout.common) + 0x14, &mut byte);
        byte[0]
    }
}

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices::new(data);
    let plain = choices.u8() % 2 == 0;
    let memory = GuestMemory::new(RAM).expect("memory");
    let mut machine = Machine::new(memory, plain);
    machine.map();
    machine.start();
    for _ in 0..STEPS {
        if !choices.any() {
            break;
        }
        let width = choices.one_of(&[1usize, 2, 4, 4, 8, 3]);
        match choices.u8() % 16 {
            0 | 1 => {
                machine.root.write_config(FUNCTION, usize::from(choices.u8()), choices.bytes(width.min(4)));
            }
            2 => machine.root.read_config(FUNCTION, usize::from(choices.u8()), &mut vec![0; width.min(4)]),
            3..=5 => {
                let at = machine.register(&mut choices);
                machine.bus.write(at, choices.bytes(width));
            }
            6 => {
                machine.bus.write(BAR + u64::from(choices.u16()), choices.bytes(width));
            }
            7 => machine.bus.read(BAR + u64::from(choices.u16()), &mut vec![0; width]),
            8 => {
                // A descriptor, an available entry, an index.
                let at = RINGS + u64::from(choices.u8() % 3) * 0x1000 + u64::from(choices.u8());
                let _ = machine.memory.write(GuestAddress(at), choices.bytes(16));
            }
            9 => machine.common(0x14, &[choices.u8()]),
            10 => machine.map(),
            11 => machine.run(),
            12 if choices.u8() % 4 == 0 => {
                machine.transport.pause();
                let section = machine.transport.save().expect("a state");
                let other = Machine::new(machine.memory.clone(), plain);
                other.transport.pause();
                other.transport.restore(&section).expect("its own state");
                assert_eq!(other.transport.save().expect("a state"), section);
                other.root.refresh();
                other.transport.resume();
                machine = other;
            }
            12 => {
                machine.transport.pause();
                machine.transport.resume();
            }
            13 => {
                let ports = machine.root.config_ports();
                let address = 1 << 31 | (FUNCTION as u32) << 8 | u32::from(choices.u8() & 0xfc);
                ports.write(0, &address.to_le_bytes());
                ports.write(4 + u64::from(choices.u8() % 4), choices.bytes(width.min(4)));
            }
            14 => {
                machine.start();
            }
            _ => {
                machine.bus.write(BAR + u64::from(machine.layout.notify), &choices.u16().to_le_bytes());
            }
        }
    }
    machine.map();
    machine.common(0x14, &[0]);
    machine.run();
    assert_eq!(machine.status(), 0, "a reset does not end");
    let mut identity = [0; 4];
    machine.root.read_config(FUNCTION, 0, &mut identity);
    assert_eq!(u32::from_le_bytes(identity), 0x1044_1af4);
    machine.memory.fill(GuestAddress(RINGS), 0x3000, 0).expect("RAM");
    machine.start();
    machine.run();
    assert_eq!(machine.status(), 0xf, "it does not start");
});
