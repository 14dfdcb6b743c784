//! What is at fixed ports since before PCI: the 16550, the keyboard controller, the clock with its CMOS memory, the ACPI
//! block and the ways to reset; any accesses, input from the host, time that passes and jumps, pauses, resets, moves.
#![no_main]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use libfuzzer_sys::fuzz_target;
use orangery_fuzz::Choices;
use vmm_core::backend::chardev::CharPort;
use vmm_core::backend::input::{InputEvent, InputPort};
use vmm_core::base::{Component, InlineExecutor};
use vmm_core::devices::legacy::{
    Apm, Clock, CmosSizes, DebugCon, I8042, I8042_PORTS, PmBlock, Port92, ResetControl, Rtc, Serial,
};
use vmm_core::hw::{Action, Bus, BusDevice};
use vmm_core::pci::PciRoot;
use vmm_core::testkit::{FakeLine, FakeManagement};

const STEPS: usize = 200;
const PM: u64 = 0x600;
/// Where each device starts, and how many ports it has here.
const PLACES: &[(u64, u64)] = &[(0x60, 5), (0x70, 2), (0x92, 1), (0x3f8, 8), (0x402, 1), (0xcf8, 8), (PM, 0x80)];

/// Time that the fuzzer turns: wall clock and monotonic.
#[derive(Clone, Default)]
struct Turned(Arc<(AtomicI64, AtomicI64)>);

impl Clock for Turned {
    fn wall(&self) -> i64 {
        self.0.0.load(Ordering::Relaxed)
    }

    fn monotonic(&self) -> u64 {
        self.0.1.load(Ordering::Relaxed) as u64
    }
}

struct Machine {
    ports: Arc<Bus>,
    components: Vec<Arc<dyn Component>>,
    power: Arc<PmBlock>,
    executor: InlineExecutor,
    line: CharPort,
    keyboard: InputPort,
    pointer: InputPort,
}

impl Machine {
    fn new(clock: &Turned) -> Machine {
        let executor = InlineExecutor::new().expect("an executor");
        let io = Arc::new(executor.clone());
        let irq = || Arc::new(FakeLine::default());
        let clock: Arc<dyn Clock> = Arc::new(clock.clone());
        let (serial_port, line) = CharPort::pair().expect("a port");
        let (debug, _) = CharPort::pair().expect("a port");
        let (keyboard, pointer) = (InputPort::new().expect("a port"), InputPort::new().expect("a port"));
        let sizes = CmosSizes { low_ram: 3 << 30, high_ram: 5 << 30, cpus: 4 };
        let power = PmBlock::new(clock.clone(), irq(), io.clone()).expect("a timer");
        let power = Arc::new(power.with_smm());
        let apm = Arc::new(Apm::new(power.clone(), Arc::new(FakeManagement::default())));
        let rtc = Arc::new(Rtc::new(sizes, clock, irq(), io.clone()).expect("a timer"));
        let serial = Arc::new(Serial::new("com1", serial_port, irq(), io.clone()));
        let i8042 = I8042::new(keyboard.clone(), pointer.clone(), irq(), irq(), io).expect("a timer");
        let i8042 = Arc::new(i8042);
        let root = PciRoot::new(Arc::new(Bus::default()), Arc::new(Bus::default()));
        let reset = Arc::new(ResetControl::new(root.config_ports()));
        let port_92 = Arc::new(Port92::default());
        let ports = Arc::new(Bus::default());
        let devices: [(u64, u64, Arc<dyn BusDevice>); 8] = [
            (0x60, I8042_PORTS, i8042.clone()),
            (0x70, 2, rtc.clone()),
            (0x92, 1, port_92.clone()),
            (0xb2, 2, apm.clone()),
            (0x3f8, 8, serial.clone()),
            (0x402, 1, Arc::new(DebugCon::new(debug))),
            (0xcf8, 8, reset.clone()),
            (PM, 0x80, power.clone()),
        ];
        for (start, len, device) in devices {
            assert!(ports.insert(start, len, device));
        }
        let components: Vec<Arc<dyn Component>> = vec![power.clone(), rtc, serial, i8042, reset, port_92, apm];
        components.iter().for_each(|component| component.resume());
        Machine { ports, components, power, executor, line, keyboard, pointer }
    }

    /// The same machine after a checkpoint, paused.
    fn copy(&self, clock: &Turned) -> Machine {
        let other = Machine::new(clock);
        for (from, to) in self.components.iter().zip(&other.components) {
            to.pause();
            to.restore(&from.save().expect("a state")).expect("its own state");
        }
        other
    }

    fn moved(self, clock: &Turned) -> Machine {
        self.components.iter().for_each(|component| component.pause());
        // Nobody holds a key in the first copy any more, and it has done what was due; from then on nothing changes.
        let other = self.copy(clock);
        for (one, two) in other.components.iter().zip(&other.copy(clock).components) {
            let same = one.save().expect("a state") == two.save().expect("a state");
            assert!(same, "{} saves another state", one.name());
        }
        other.components.iter().for_each(|component| component.resume());
        other
    }
}

/// Whether its state follows a clock: what is due by then is only found when it is looked at.
fn has_clock(component: &dyn Component) -> bool {
    matches!(component.name().as_str(), "rtc" | "pm")
}

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices::new(data);
    let clock = Turned::default();
    clock.0.0.store(i64::from(choices.u32()) << 30, Ordering::Relaxed);
    let mut machine = Machine::new(&clock);
    for _ in 0..STEPS {
        if !choices.any() {
            break;
        }
        match choices.u8() % 16 {
            0..=5 => {
                let (start, len) = choices.one_of(PLACES);
                let width = choices.one_of(&[1usize, 1, 1, 2, 4, 8]);
                let data = choices.bytes(width);
                let action = machine.ports.write(start + u64::from(choices.u8()) % len, data);
                if let Some(Action::Reset) = action {
                    for component in &machine.components {
                        component.pause();
                        component.reset();
                        component.resume();
                    }
                }
            }
            6..=8 => {
                let (start, len) = choices.one_of(PLACES);
                let width = choices.one_of(&[1usize, 1, 1, 2, 4, 8]);
                machine.ports.read(start + u64::from(choices.u8()) % len, &mut vec![0; width]);
            }
            9 => {
                machine.line.write(choices.bytes(40));
                machine.line.read(&mut [0; 64]);
            }
            10 => {
                let port = if choices.u8() % 2 == 0 { &machine.keyboard } else { &machine.pointer };
                let event = InputEvent {
                    kind: u16::from(choices.u8() % 5),
                    code: choices.u16() % 0x280,
                    value: choices.u32() as i32,
                };
                port.send(&[event, InputEvent::SYN]);
                if choices.u8() % 16 == 0 {
                    port.claim(choices.u8() % 2 == 0);
                }
            }
            11 => {
                let by = i64::from(choices.u32()) << (choices.u8() % 24);
                let now = clock.0.0.load(Ordering::Relaxed);
                clock.0.0.store(now.saturating_add(if choices.u8() % 8 == 0 { -by } else { by }), Ordering::Relaxed);
                let now = clock.0.1.load(Ordering::Relaxed);
                clock.0.1.store(now.saturating_add(by), Ordering::Relaxed);
            }
            12 if choices.u8() % 2 == 0 => machine.power.press_power_button(),
            12 => machine.power.raise_event(choices.u8()),
            13 if choices.u8() % 4 == 0 => machine = machine.moved(&clock),
            13 => {
                for component in &machine.components {
                    component.pause();
                    component.resume();
                }
            }
            // Timers are the host's own and may expire at any time, so that it need not come to rest.
            _ => _ = machine.executor.turn(8),
        }
    }
    for component in &machine.components {
        component.pause();
        component.reset();
    }
    // After a reset each is what a new one is, but for clocks, which go on, and CMOS memory.
    let fresh = Machine::new(&clock);
    for (old, new) in machine.components.iter().zip(&fresh.components) {
        if has_clock(&**old) {
            continue;
        }
        new.pause();
        assert!(old.save().expect("a state") == new.save().expect("a state"), "{} is not reset", old.name());
    }
});
