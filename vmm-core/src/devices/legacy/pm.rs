//! The ACPI fixed hardware at PMBASE (ICH9 §13.8.3, ACPI 6.4 §4.8): power button, sleep states, the power management
//! timer and general purpose events.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::clock::{Clock, Timer};
use super::{Work, lock};
use crate::base::{Component, Executor, SavedState, Section, StateError, Task};
use crate::hw::{Action, BusDevice, IrqLine};

/// Offsets of the dwords that hold the registers.
mod port {
    /// PM1_STS, u16, and PM1_EN, u16.
    pub const PM1: u64 = 0x00;
    /// PM1_CNT, u16.
    pub const PM1_CNT: u64 = 0x04;
    /// PM_TMR, u32.
    pub const TIMER: u64 = 0x08;
    /// GPE0_STS, 8 bytes.
    pub const GPE0_STS: u64 = 0x20;
    /// GPE0_EN, 8 bytes.
    pub const GPE0_EN: u64 = 0x28;
    /// SMI_EN, u32.
    pub const SMI_EN: u64 = 0x30;
}

/// PM1 status and enable bits (ACPI 6.4 §4.8.4.1).
mod pm1 {
    pub const TIMER: u16 = 1 << 0;
    pub const GLOBAL_LOCK: u16 = 1 << 5;
    pub const POWER_BUTTON: u16 = 1 << 8;
    pub const RTC: u16 = 1 << 10;
    /// Those that raise the SCI where they are enabled.
    pub const EVENTS: u16 = TIMER | GLOBAL_LOCK | POWER_BUTTON | RTC;
}

/// PM1 control bits (ACPI 6.4 §4.8.4.2).
mod control {
    /// Power management events raise the SCI. Always: no firmware takes them for itself in system management mode.
    pub const SCI_EN: u16 = 1 << 0;
    pub const BUS_MASTER_RELOAD: u16 = 1 << 1;
    pub const SLEEP_TYPE_SHIFT: u16 = 10;
    pub const SLEEP_TYPE: u16 = 7 << SLEEP_TYPE_SHIFT;
    pub const SLEEP_ENABLE: u16 = 1 << 13;
}

/// The sleep types that firmware and our ACPI tables use: soft off, and suspend to disk, which ends the same way.
/// Suspend to RAM would be 1; it is not offered.
const SLEEP_TYPES_OFF: [u16; 2] = [0, 2];
/// SMI_EN (ICH9 §13.8.3.8): GBL_SMI_EN, without which there is no interrupt, and APMC_EN, which has software raise it.
const GBL_SMI_EN: u32 = 1 << 0;
const APMC_EN: u32 = 1 << 5;

/// The timer's rate, Hz, and how wide it is (ACPI 6.4 §4.8.2.1).
const TIMER_HZ: u128 = 3_579_545;
const TIMER_BITS: u32 = 24;
const TIMER_MASK: u64 = (1 << TIMER_BITS) - 1;
/// The timer's status is set whenever its highest bit changes: every this many ticks.
const TIMER_EVENT: u64 = 1 << (TIMER_BITS - 1);
const NANOSECONDS: u128 = 1_000_000_000;

/// The 128 ports.
pub struct PmBlock {
    shared: Arc<Shared>,
    work: Work,
    smi_lock: Arc<AtomicBool>,
}

struct Shared {
    clock: Arc<dyn Clock>,
    sci: Arc<dyn IrqLine>,
    state: Mutex<State>,
}

struct State {
    status: u16,
    enable: u16,
    control: u16,
    gpe0_status: [u8; 8],
    gpe0_enable: [u8; 8],
    smi_enable: u32,
    /// The machine has system management mode.
    smm: bool,
    /// What the timer's count is ahead of the host clock's.
    timer_offset: u64,
    /// The count at which the timer's status was last brought up to date.
    timer_seen: u64,
    timer: Timer,
    /// The timer's status can't change before this count: nobody has to look.
    armed: bool,
}

/// What a checkpoint keeps of the block.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmState {
    status: u16,
    enable: u16,
    control: u16,
    /// Since version 2.
    #[serde(default)]
    gpe0_status: [u8; 8],
    gpe0_enable: [u8; 8],
    smi_enable: u32,
    timer: u64,
    timer_seen: u64,
}

impl SavedState for PmState {
    const VERSION: u32 = 2;
}

/// Ticks of the timer in `nanoseconds`.
fn ticks(nanoseconds: u64) -> u64 {
    (u128::from(nanoseconds) * TIMER_HZ / NANOSECONDS) as u64
}

impl Shared {
    /// The timer's count, wider than the guest sees it.
    fn count(&self, state: &State) -> u64 {
        ticks(self.clock.monotonic()).wrapping_add(state.timer_offset)
    }

    /// Brings status, interrupt and host timer up to date.
    fn update(&self, state: &mut State) {
        let now = self.count(state);
        if now / TIMER_EVENT != state.timer_seen / TIMER_EVENT {
            state.status |= pm1::TIMER;
        }
        state.timer_seen = now;
        let wanted = state.enable & pm1::TIMER != 0 && state.status & pm1::TIMER == 0;
        if wanted {
            let left = TIMER_EVENT - now % TIMER_EVENT;
            // One tick more, so that it never comes early.
            let delay = (u128::from(left) + 1) * NANOSECONDS / TIMER_HZ;
            state.timer.arm(Some(Duration::from_nanos(delay as u64)));
        } else if state.armed {
            state.timer.arm(None);
        }
        state.armed = wanted;
        let general = state.gpe0_status.iter().zip(&state.gpe0_enable).any(|(status, enable)| status & enable != 0);
        self.sci.set(state.status & state.enable & pm1::EVENTS != 0 || general);
    }
}

impl State {
    fn power_on(&mut self) {
        let State {
            status,
            enable,
            control,
            gpe0_status,
            gpe0_enable,
            smi_enable,
            smm,
            timer_offset: _,
            timer_seen: _,
            timer: _,
            armed: _,
        } = self;
        (*status, *enable, *control) = (0, 0, 0);
        (*gpe0_status, *gpe0_enable) = ([0; 8], [0; 8]);
        // As if it were set up already where there is none, so that SeaBIOS leaves it alone.
        *smi_enable = if *smm { 0 } else { APMC_EN };
    }

    /// One byte of the registers; [`port::TIMER`] is read elsewhere.
    fn byte(&self, offset: u64) -> u8 {
        let registers = match offset & !3 {
            port::PM1 => u32::from(self.status) | u32::from(self.enable) << 16,
            port::PM1_CNT => u32::from(self.control | control::SCI_EN),
            port::SMI_EN => self.smi_enable,
            at if (port::GPE0_STS..port::GPE0_EN).contains(&at) => return self.gpe0_status[(offset & 7) as usize],
            at if (port::GPE0_EN..port::SMI_EN).contains(&at) => return self.gpe0_enable[(offset & 7) as usize],
            // Among them the watchdog (TCO) at 0x60, which is absent.
            _ => 0,
        };
        registers.to_le_bytes()[(offset & 3) as usize]
    }

    /// `smi_locked`: whether interrupts can be turned off no more.
    fn write_byte(&mut self, offset: u64, byte: u8, smi_locked: bool) -> Option<Action> {
        let shift = 8 * (offset & 1);
        let word = u16::from(byte) << shift;
        let keep = !(0xff << shift);
        match offset {
            0x00 | 0x01 => self.status &= !word,
            0x02 | 0x03 => self.enable = self.enable & keep | word & pm1::EVENTS,
            0x04 | 0x05 => {
                let stored = word & (control::BUS_MASTER_RELOAD | control::SLEEP_TYPE);
                self.control = self.control & keep | stored;
                let kind = (self.control & control::SLEEP_TYPE) >> control::SLEEP_TYPE_SHIFT;
                if word & control::SLEEP_ENABLE != 0 && SLEEP_TYPES_OFF.contains(&kind) {
                    return Some(Action::PowerOff);
                }
            }
            0x20..0x28 => self.gpe0_status[(offset - 0x20) as usize] &= !byte,
            0x28..0x30 => self.gpe0_enable[(offset - 0x28) as usize] = byte,
            0x30..0x34 => {
                let shift = 8 * (offset & 3);
                let kept = self.smi_enable & if smi_locked { GBL_SMI_EN } else { 0 };
                self.smi_enable = self.smi_enable & !(0xff << shift) | u32::from(byte) << shift | kept;
            }
            _ => (),
        }
        None
    }
}

impl PmBlock {
    /// A block that raises `sci` (level, interrupt 9); its timer runs on `executor`. Fails when the host is out of
    /// file descriptors.
    pub fn new(clock: Arc<dyn Clock>, sci: Arc<dyn IrqLine>, executor: Arc<dyn Executor>) -> std::io::Result<PmBlock> {
        let mut state = State {
            status: 0,
            enable: 0,
            control: 0,
            gpe0_status: [0; 8],
            gpe0_enable: [0; 8],
            smi_enable: 0,
            smm: false,
            timer_offset: ticks(clock.monotonic()).wrapping_neg(),
            timer_seen: 0,
            timer: Timer::new()?,
            armed: false,
        };
        state.power_on();
        let shared = Arc::new(Shared { clock, sci, state: Mutex::new(state) });
        Ok(PmBlock { shared, work: Work::new(executor), smi_lock: Arc::default() })
    }

    /// The same in a machine with system management mode.
    pub fn with_smm(self) -> PmBlock {
        {
            let mut state = lock(&self.shared.state);
            state.smm = true;
            state.power_on();
        }
        self
    }

    /// Whether software that writes APM_CNT raises the system management interrupt.
    pub fn has_software_smi(&self) -> bool {
        let wanted = GBL_SMI_EN | APMC_EN;
        let state = lock(&self.shared.state);
        state.smm && state.smi_enable & wanted == wanted
    }

    /// Whether that can't be turned off any more until the next reset: SMI_LOCK, a bit of the LPC bridge.
    pub fn smi_lock(&self) -> Arc<AtomicBool> {
        self.smi_lock.clone()
    }

    /// Presses the power button: the guest is asked to shut down.
    pub fn press_power_button(&self) {
        let mut state = lock(&self.shared.state);
        state.status |= pm1::POWER_BUTTON;
        self.shared.update(&mut state);
    }
}

impl PmBlock {
    /// Raises general purpose event `number`, 0 to 63 (ACPI 6.4 §4.8.5.1).
    pub fn raise_event(&self, number: u8) {
        let mut state = lock(&self.shared.state);
        if let Some(byte) = state.gpe0_status.get_mut(usize::from(number / 8)) {
            *byte |= 1 << (number % 8);
        }
        self.shared.update(&mut state);
    }
}

impl BusDevice for PmBlock {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = lock(&self.shared.state);
        if offset & !3 == port::TIMER {
            // By far the most frequent access; it must be cheap.
            let count = (self.shared.count(&state) & TIMER_MASK) as u32;
            let bytes = count.to_le_bytes();
            for (byte, &from) in data.iter_mut().zip(&bytes[(offset & 3) as usize..]) {
                *byte = from;
            }
            return;
        }
        if offset < 2 {
            self.shared.update(&mut state);
        }
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = state.byte(at);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        let mut state = lock(&self.shared.state);
        // What happened before the write is not to be taken for something that happened after it.
        self.shared.update(&mut state);
        let (mut action, smi_locked) = (None, self.smi_lock.load(Ordering::SeqCst));
        for (&byte, at) in data.iter().zip(offset..) {
            action = state.write_byte(at, byte, smi_locked).or(action);
        }
        self.shared.update(&mut state);
        action
    }
}

struct Ticker(Arc<Shared>);

impl Task for Ticker {
    fn descriptors(&self) -> Vec<(RawFd, u32)> {
        vec![(lock(&self.0.state).timer.descriptor(), 0)]
    }

    fn start(&mut self) {
        self.ready(0);
    }

    fn ready(&mut self, _: u32) {
        self.0.update(&mut lock(&self.0.state));
    }

    fn stopped(self: Box<Self>) {}
}

impl Component for PmBlock {
    fn name(&self) -> String {
        "pm".into()
    }

    fn pause(&self) {
        self.work.stop();
    }

    fn resume(&self) {
        self.work.start(|| Box::new(Ticker(self.shared.clone())));
    }

    fn reset(&self) {
        let mut state = lock(&self.shared.state);
        state.power_on();
        state.timer_seen = self.shared.count(&state);
        self.shared.update(&mut state);
    }

    fn save(&self) -> Result<Section, StateError> {
        let state = lock(&self.shared.state);
        let timer = self.shared.count(&state);
        let State {
            status,
            enable,
            control,
            gpe0_status,
            gpe0_enable,
            smi_enable,
            smm: _,
            timer_offset: _,
            timer_seen,
            timer: _,
            armed: _,
        } = &*state;
        let kept = PmState {
            status: *status,
            enable: *enable,
            control: *control,
            gpe0_status: *gpe0_status,
            gpe0_enable: *gpe0_enable,
            smi_enable: *smi_enable,
            timer,
            timer_seen: *timer_seen,
        };
        Section::encode(&self.name(), &kept)
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let PmState { status, enable, control, gpe0_status, gpe0_enable, smi_enable, timer, timer_seen } =
            section.decode()?;
        let mut state = lock(&self.shared.state);
        state.status = status;
        state.enable = enable & pm1::EVENTS;
        state.control = control & (control::BUS_MASTER_RELOAD | control::SLEEP_TYPE);
        (state.gpe0_status, state.gpe0_enable) = (gpe0_status, gpe0_enable);
        state.smi_enable = smi_enable;
        // The count goes on from where it was.
        state.timer_offset = timer.wrapping_sub(ticks(self.shared.clock.monotonic()));
        state.timer_seen = timer_seen;
        self.shared.update(&mut state);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::clock::fake::FakeClock;
    use super::*;
    use crate::base::InlineExecutor;
    use crate::testkit::FakeLine;

    const SECOND: i64 = 1_000_000_000;

    fn block() -> (FakeClock, FakeLine, PmBlock) {
        let (clock, line) = (FakeClock::at(77 * SECOND), FakeLine::default());
        let executor = Arc::new(InlineExecutor::new().unwrap());
        let block = PmBlock::new(Arc::new(clock.clone()), Arc::new(line.clone()), executor).unwrap();
        (clock, line, block)
    }

    fn word(block: &PmBlock, offset: u64) -> u16 {
        let mut bytes = [0; 2];
        block.read(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    fn timer(block: &PmBlock) -> u32 {
        let mut bytes = [0; 4];
        block.read(8, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn the_power_button_raises_the_sci_until_its_status_is_cleared() {
        let (_, line, block) = block();
        block.press_power_button();
        assert_eq!((word(&block, 0), line.level()), (0x100, false));
        block.write(2, &0xffffu16.to_le_bytes());
        assert_eq!((word(&block, 2), line.level()), (0x521, true));
        block.write(0, &[0xff]);
        assert!(line.level());
        block.write(1, &[0x01]);
        assert_eq!((word(&block, 0), line.level()), (0, false));
    }

    #[test]
    fn sleep_enable_powers_off_for_s5_and_s4_and_does_nothing_for_s3() {
        let (_, _, block) = block();
        assert_eq!(word(&block, 4), 1);
        assert_eq!(block.write(4, &0x2401u16.to_le_bytes()), None);
        assert_eq!(block.write(4, &0x0001u16.to_le_bytes()), None);
        assert_eq!(block.write(4, &0x2000u16.to_le_bytes()), Some(Action::PowerOff));
        assert_eq!(block.write(4, &0x2801u16.to_le_bytes()), Some(Action::PowerOff));
        assert_eq!(block.write(5, &[0x20]), Some(Action::PowerOff));
        assert_eq!(block.write(4, &0x2000u32.to_le_bytes()), Some(Action::PowerOff));
        assert_eq!(word(&block, 4), 1);
    }

    #[test]
    fn the_timer_counts_at_its_rate_in_24_bits() {
        let (clock, _, block) = block();
        let start = timer(&block);
        clock.turn(SECOND);
        assert_eq!(timer(&block).wrapping_sub(start) & 0xff_ffff, 3_579_545);
        clock.turn(1_000_000 * SECOND);
        assert_eq!(timer(&block) >> 24, 0);
    }

    #[test]
    fn the_timers_highest_bit_sets_its_status_and_raises_the_sci_where_enabled() {
        let (clock, line, block) = block();
        clock.turn(2 * SECOND);
        assert_eq!(word(&block, 0), 0);
        clock.turn(SECOND);
        assert_eq!((word(&block, 0), line.level()), (1, false));
        block.write(0, &[1]);
        assert_eq!(word(&block, 0), 0);
        block.write(2, &[1, 0]);
        assert!(lock(&block.shared.state).armed);
        clock.turn(3 * SECOND);
        Ticker(block.shared.clone()).ready(0);
        assert!(line.level());
        assert!(!lock(&block.shared.state).armed);
        block.write(0, &[1]);
        assert!(!line.level());
    }

    #[test]
    fn a_restored_block_goes_on_counting_from_where_it_was() {
        let (clock, _, saved) = block();
        clock.turn(5 * SECOND);
        saved.write(2, &[0x21, 0x01]);
        saved.press_power_button();
        let count = timer(&saved);
        let section = saved.save().unwrap();
        let (clock, line, fresh) = block();
        clock.turn(1234 * SECOND);
        fresh.restore(&section).unwrap();
        assert!(line.level());
        assert_eq!((timer(&fresh), fresh.save().unwrap()), (count, section));
    }

    #[test]
    fn a_general_event_raises_the_sci_where_it_is_enabled_until_its_status_is_cleared() {
        let (_, line, block) = block();
        block.raise_event(13);
        block.raise_event(200);
        assert_eq!((word(&block, 0x20), line.level()), (1 << 13, false));
        block.write(0x28, &[0xff, 1 << 5]);
        assert!(line.level());
        let section = block.save().unwrap();
        block.write(0x20, &[0xff, 0]);
        assert!(line.level());
        block.write(0x21, &[1 << 5]);
        assert_eq!((word(&block, 0x20), line.level()), (0, false));
        block.restore(&section).unwrap();
        assert!(line.level());
        block.reset();
        assert_eq!((word(&block, 0x20), line.level()), (0, false));
    }

    #[test]
    fn reset_lowers_the_sci_and_tells_the_bios_to_leave_smm_alone() {
        let (_, line, block) = block();
        block.write(2, &[0, 1]);
        block.write(0x28, &[0xff; 12]);
        block.press_power_button();
        assert!(line.level());
        block.reset();
        assert!(!line.level());
        let mut bytes = [0; 12];
        block.read(0x28, &mut bytes);
        assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0]);
    }

    #[test]
    fn with_smm_software_s_interrupt_is_off_until_it_is_enabled_and_stays_once_it_is_locked() {
        let (_, _, block) = block();
        assert!(!block.has_software_smi());
        block.write(0x30, &[0x21]);
        assert!(!block.has_software_smi(), "there is no such mode");
        let block = block.with_smm();
        assert!(!block.has_software_smi());
        block.write(0x30, &[0x21, 0, 0, 0]);
        assert!(block.has_software_smi());
        block.write(0x30, &[0x20]);
        assert!(!block.has_software_smi());
        block.write(0x30, &[0x21]);
        block.smi_lock().store(true, Ordering::SeqCst);
        block.write(0x30, &[0x20, 0, 0, 0]);
        assert!(block.has_software_smi());
        block.smi_lock().store(false, Ordering::SeqCst);
        block.reset();
        assert!(!block.has_software_smi());
    }

    #[test]
    fn no_access_of_any_size_panics_and_the_watchdog_is_absent() {
        let (_, _, block) = block();
        for offset in 0..128 {
            for len in [1, 2, 3, 4, 8] {
                block.write(offset, &vec![0xdf; len]);
                block.read(offset, &mut vec![0; len]);
            }
        }
        assert_eq!((word(&block, 0x60), word(&block, 0x7e)), (0, 0));
    }
}
