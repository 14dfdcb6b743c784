//! The real-time clock MC146818 with its 128 bytes of CMOS memory, at ports 0x70 and 0x71 (Motorola MC146818A data
//! sheet; ICH9 §13.6). It shows UTC.
//!
//! Nothing ticks: what the registers show is computed from the host's clock when the guest looks, and a host timer
//! runs only while the guest waits for an interrupt.

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::clock::{Clock, Timer};
use super::{Work, lock};
use crate::base::{Component, Executor, SavedState, Section, StateError, Task};
use crate::hw::{Action, BusDevice, IrqLine};

/// Indexes of the registers and of the memory that firmware knows.
mod reg {
    pub const SECONDS: usize = 0x00;
    pub const SECONDS_ALARM: usize = 0x01;
    pub const MINUTES: usize = 0x02;
    pub const MINUTES_ALARM: usize = 0x03;
    pub const HOURS: usize = 0x04;
    pub const HOURS_ALARM: usize = 0x05;
    pub const WEEKDAY: usize = 0x06;
    pub const DAY: usize = 0x07;
    pub const MONTH: usize = 0x08;
    pub const YEAR: usize = 0x09;
    pub const A: usize = 0x0a;
    pub const B: usize = 0x0b;
    pub const C: usize = 0x0c;
    pub const D: usize = 0x0d;
    /// What the BIOS does after a reset.
    pub const SHUTDOWN_STATUS: usize = 0x0f;
    /// What is fitted: a coprocessor and a PS/2 mouse.
    pub const EQUIPMENT: usize = 0x14;
    /// KiB below 640 KiB, u16.
    pub const BASE_MEMORY: usize = 0x15;
    /// KiB above 1 MiB, u16; twice.
    pub const EXTENDED_MEMORY: [usize; 2] = [0x17, 0x30];
    /// The sum of 0x10 to 0x2d, u16, high byte first.
    pub const CHECKSUM: usize = 0x2e;
    pub const CENTURY: usize = 0x32;
    /// 64 KiB units above 16 MiB, u16.
    pub const MEMORY_ABOVE_16M: usize = 0x34;
    /// 64 KiB units above 4 GiB, three bytes.
    pub const MEMORY_ABOVE_4G: usize = 0x5b;
    /// CPUs beside the first.
    pub const MORE_CPUS: usize = 0x5f;
}

/// Register A.
const UPDATE_IN_PROGRESS: u8 = 0x80;
const DIVIDER: u8 = 0x70;
const DIVIDER_RUNS: u8 = 0x20;
const RATE: u8 = 0x0f;
/// Register B. The three interrupt enables have the places of their flags in register C.
const SET: u8 = 0x80;
const PERIODIC: u8 = 0x40;
const ALARM: u8 = 0x20;
const UPDATE: u8 = 0x10;
const INTERRUPTS: u8 = PERIODIC | ALARM | UPDATE;
const SQUARE_WAVE: u8 = 0x08;
const BINARY: u8 = 0x04;
const HOURS_24: u8 = 0x02;
/// Register C: an enabled flag is set.
const INTERRUPT_REQUEST: u8 = 0x80;
/// Register D: the battery is good.
const VALID: u8 = 0x80;
/// In hours of the 12-hour mode.
const PM: u8 = 0x80;
/// In an alarm register: any value matches.
const DONT_CARE: u8 = 0xc0;
const NMI_OFF: u8 = 0x80;

const SECOND: i64 = 1_000_000_000;
const DAY: i64 = 86_400;
/// How long before an update the guest is warned, ns.
const UPDATE_WARNING: i64 = 244_000;
/// The first update comes this long after the divider starts, ns.
const DIVIDER_START: i64 = SECOND / 2;
/// More than the largest difference to the host's clock that a guest can set, s: its years end at 25755, in binary.
const MAX_OFFSET: i64 = 30_000 * 366 * DAY;

/// The machine's sizes as old firmware reads them from CMOS memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CmosSizes {
    /// RAM below 4 GiB, bytes.
    pub low_ram: u64,
    /// RAM above 4 GiB, bytes.
    pub high_ram: u64,
    /// CPUs, at least 1.
    pub cpus: u16,
}

impl CmosSizes {
    fn memory(self) -> [u8; 128] {
        let CmosSizes { low_ram, high_ram, cpus } = self;
        let mut memory = [0; 128];
        let mut set = |at: usize, bytes: &[u8]| memory[at..at + bytes.len()].copy_from_slice(bytes);
        let units = |bytes: u64, unit: u64| u16::try_from(bytes / unit).unwrap_or(u16::MAX).to_le_bytes();
        set(reg::A, &[DIVIDER_RUNS | 6, HOURS_24]);
        set(reg::EQUIPMENT, &[0x06]);
        set(reg::BASE_MEMORY, &units(low_ram.min(640 << 10), 1 << 10));
        for at in reg::EXTENDED_MEMORY {
            set(at, &units(low_ram.saturating_sub(1 << 20), 1 << 10));
        }
        set(reg::MEMORY_ABOVE_16M, &units(low_ram.saturating_sub(16 << 20), 1 << 16));
        set(reg::MEMORY_ABOVE_4G, &(high_ram >> 16).min(0xff_ffff).to_le_bytes()[..3]);
        set(reg::MORE_CPUS, &[u8::try_from(cpus.saturating_sub(1)).unwrap_or(u8::MAX)]);
        let sum: u16 = memory[0x10..reg::CHECKSUM].iter().map(|&b| u16::from(b)).sum();
        memory[reg::CHECKSUM..reg::CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
        memory
    }
}

/// The clock.
pub struct Rtc {
    shared: Arc<Shared>,
    work: Work,
}

struct Shared {
    clock: Arc<dyn Clock>,
    irq: Arc<dyn IrqLine>,
    state: Mutex<State>,
}

struct State {
    /// With the NMI bit.
    index: u8,
    /// All registers. Those of the time count only while the clock stands.
    memory: [u8; 128],
    /// What the guest's seconds are ahead of the host's.
    offset: i64,
    /// What the guest's second begins before the host's, ns below 1 s.
    phase: i64,
    /// What the weekday is ahead of the date's.
    weekday_offset: u8,
    /// How much of a second had passed when the clock was stopped, ns.
    fraction: i64,
    /// Register C's flags.
    flags: u8,
    /// Up to when events have been looked for, in ns of [`Shared::now`].
    seen: i64,
    timer: Timer,
    armed: Option<i64>,
}

/// What a checkpoint keeps of the clock.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    index: u8,
    memory: Vec<u8>,
    offset: i64,
    phase: i64,
    weekday_offset: u8,
    fraction: i64,
    flags: u8,
}

impl SavedState for RtcState {
    const VERSION: u32 = 1;
}

/// The registers of the time, in the order of [`TIME`].
type TimeBytes = [u8; 8];
const TIME: [usize; 8] =
    [reg::SECONDS, reg::MINUTES, reg::HOURS, reg::WEEKDAY, reg::DAY, reg::MONTH, reg::YEAR, reg::CENTURY];

/// Days since 1970-01-01 of a date in the Gregorian calendar; `day` may lie outside its month.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March, so that a leap day is a year's last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leaps = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // Day 0 of this count is 0000-03-01.
    365 * year + leaps + (153 * month + 2) / 5 + day - 1 - 719_468
}

/// The year, month and day of a count of days since 1970-01-01.
fn date(count: i64) -> (i64, i64, i64) {
    let shifted = count + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let year = 400 * era + year_of_era;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

impl State {
    fn runs(&self) -> bool {
        self.memory[reg::B] & SET == 0 && self.divider_runs()
    }

    fn divider_runs(&self) -> bool {
        self.memory[reg::A] & DIVIDER == DIVIDER_RUNS
    }

    /// The guest's seconds since 1970 at `now`.
    fn seconds(&self, now: i64) -> i64 {
        now.div_euclid(SECOND) + self.offset
    }

    fn encode(&self, value: i64) -> u8 {
        let value = value.rem_euclid(100) as u8;
        if self.memory[reg::B] & BINARY != 0 { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn decode(&self, byte: u8) -> i64 {
        i64::from(if self.memory[reg::B] & BINARY != 0 { byte } else { (byte >> 4) * 10 + (byte & 0xf) })
    }

    fn encode_hour(&self, hour: i64) -> u8 {
        if self.memory[reg::B] & HOURS_24 != 0 {
            return self.encode(hour);
        }
        let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
        self.encode(twelve) | if hour >= 12 { PM } else { 0 }
    }

    fn decode_hour(&self, byte: u8) -> i64 {
        if self.memory[reg::B] & HOURS_24 != 0 {
            return self.decode(byte);
        }
        self.decode(byte & !PM) % 12 + if byte & PM != 0 { 12 } else { 0 }
    }

    /// The registers of the time at `now`.
    fn time_bytes(&self, now: i64) -> TimeBytes {
        if !self.runs() {
            return TIME.map(|at| self.memory[at]);
        }
        let seconds = self.seconds(now);
        let (count, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        let (year, month, day) = date(count);
        // 1970-01-01 was a Thursday; Sunday is 1.
        let weekday = (count + 4 + i64::from(self.weekday_offset)).rem_euclid(7) + 1;
        [
            self.encode(second % 60),
            self.encode(second / 60 % 60),
            self.encode_hour(second / 3600),
            self.encode(weekday),
            self.encode(day),
            self.encode(month),
            self.encode(year),
            self.encode(year.div_euclid(100)),
        ]
    }

    /// Has the clock, which runs, show what the registers say, from `now` on.
    fn set_time(&mut self, bytes: TimeBytes, now: i64) {
        let [second, minute, hour, weekday, day, month, year, century] = bytes;
        let year = self.decode(century) * 100 + self.decode(year);
        let count = days(year, self.decode(month).clamp(1, 12), self.decode(day).clamp(1, 31));
        let second_of_day = self.decode_hour(hour) * 3600 + self.decode(minute) * 60 + self.decode(second);
        let seconds = count * DAY + second_of_day;
        self.offset = seconds - now.div_euclid(SECOND);
        let natural = (seconds.div_euclid(DAY) + 4).rem_euclid(7) + 1;
        self.weekday_offset = (self.decode(weekday) - natural).rem_euclid(7) as u8;
        self.seen = now;
    }

    /// The period of the periodic interrupt, ns (data sheet, table 5).
    fn period(&self) -> Option<i64> {
        let rate = self.memory[reg::A] & RATE;
        // The two fastest rates are those of a 32 kHz crystal's slow end.
        let rate = if matches!(rate, 1 | 2) { rate + 7 } else { rate };
        (rate != 0 && self.divider_runs()).then(|| SECOND * (1 << (rate - 1)) / 32_768)
    }

    /// Seconds from `after` until the alarm matches next, at least 1.
    fn until_alarm(&self, after: i64) -> Option<i64> {
        let byte = |at: usize| Some(self.memory[at]).filter(|b| b & DONT_CARE != DONT_CARE);
        let second = byte(reg::SECONDS_ALARM).map(|b| self.decode(b));
        let minute = byte(reg::MINUTES_ALARM).map(|b| self.decode(b));
        let hour = byte(reg::HOURS_ALARM).map(|b| self.decode_hour(b));
        let start = (after + 1).rem_euclid(DAY);
        let matches = |wanted: Option<i64>, value: i64| wanted.is_none_or(|w| w == value);
        // Today's rest from `start` on, then what of tomorrow comes before it.
        let hours = (start / 3600..24).map(|h| h * 3600).chain((0..=start / 3600).map(|h| DAY + h * 3600));
        for at in hours.filter(|at| matches(hour, at / 3600 % 24)) {
            for at in (0..60).map(|m| at + m * 60).filter(|at| matches(minute, at / 60 % 60)) {
                let first = (start - at).clamp(0, 60);
                let found = (first..60).map(|s| at + s).find(|at| matches(second, at % 60));
                if let Some(found) = found {
                    return Some(found - start + 1);
                }
            }
        }
        None
    }

    /// Sets the flags of what happened since the last look.
    fn advance(&mut self, now: i64) {
        let since = std::mem::replace(&mut self.seen, now);
        // The host's clock was set back: nothing happened yet.
        if now <= since {
            return;
        }
        let passed = |period: i64| now.div_euclid(period) != since.div_euclid(period);
        if self.period().is_some_and(passed) {
            self.flags |= PERIODIC;
        }
        if self.runs() && passed(SECOND) {
            self.flags |= UPDATE;
            let seconds = self.seconds(since);
            if self.until_alarm(seconds).is_some_and(|left| left <= self.seconds(now) - seconds) {
                self.flags |= ALARM;
            }
        }
    }

    /// When the next event comes for which the guest wants an interrupt. A flag that is set already brings none.
    fn next_event(&self) -> Option<i64> {
        let waited_for = self.memory[reg::B] & INTERRUPTS & !self.flags;
        let after = |period: i64| (self.seen.div_euclid(period) + 1) * period;
        let periodic = self.period().filter(|_| waited_for & PERIODIC != 0).map(after);
        let second = self.seen.div_euclid(SECOND);
        let update = (waited_for & UPDATE != 0 && self.runs()).then(|| (second + 1) * SECOND);
        let alarm = (waited_for & ALARM != 0 && self.runs()).then(|| self.until_alarm(second + self.offset)).flatten();
        let alarm = alarm.map(|left| (second + left) * SECOND);
        [periodic, update, alarm].into_iter().flatten().min()
    }

    fn read(&mut self, now: i64) -> u8 {
        let index = usize::from(self.index & !NMI_OFF);
        if let Some(at) = TIME.iter().position(|&r| r == index) {
            return self.time_bytes(now)[at];
        }
        match index {
            reg::A => {
                let updating = self.runs() && now.rem_euclid(SECOND) >= SECOND - UPDATE_WARNING;
                self.memory[reg::A] | if updating { UPDATE_IN_PROGRESS } else { 0 }
            }
            reg::C => {
                self.advance(now);
                let requests = self.memory[reg::B] & self.flags & INTERRUPTS != 0;
                std::mem::take(&mut self.flags) | if requests { INTERRUPT_REQUEST } else { 0 }
            }
            reg::D => VALID,
            _ => self.memory[index],
        }
    }

    fn write(&mut self, byte: u8, now: i64, wall: i64) {
        let index = usize::from(self.index & !NMI_OFF);
        self.advance(now);
        if let Some(at) = TIME.iter().position(|&r| r == index) {
            if self.runs() {
                let mut bytes = self.time_bytes(now);
                bytes[at] = byte;
                self.set_time(bytes, now);
            } else {
                self.memory[index] = byte;
            }
            return;
        }
        match index {
            reg::A => self.control(byte & !UPDATE_IN_PROGRESS, self.memory[reg::B], now, wall),
            // Setting the clock switches the update interrupt off.
            reg::B if byte & SET != 0 => self.control(self.memory[reg::A], byte & !UPDATE, now, wall),
            reg::B => self.control(self.memory[reg::A], byte, now, wall),
            reg::C | reg::D => (),
            _ => self.memory[index] = byte,
        }
    }

    /// Sets registers A and B, and stops or starts the clock as they say.
    fn control(&mut self, a: u8, b: u8, now: i64, wall: i64) {
        let (ran, divider_ran) = (self.runs(), self.divider_runs());
        let bytes = self.time_bytes(now);
        self.memory[reg::A] = a;
        self.memory[reg::B] = b;
        if ran && !self.runs() {
            for (at, byte) in TIME.into_iter().zip(bytes) {
                self.memory[at] = byte;
            }
            self.fraction = now.rem_euclid(SECOND);
        }
        if !divider_ran && self.divider_runs() {
            self.fraction = DIVIDER_START;
        }
        if !ran && self.runs() {
            self.phase = (self.fraction - wall).rem_euclid(SECOND);
            let now = wall + self.phase;
            self.set_time(TIME.map(|at| self.memory[at]), now);
        }
    }
}

impl Shared {
    /// The time that the clock's events are counted in, ns; and the host's own.
    fn now(&self, state: &State) -> (i64, i64) {
        let wall = self.clock.wall();
        (wall.saturating_add(state.phase), wall)
    }

    /// Brings flags, interrupt and host timer up to date.
    fn update(&self, state: &mut State) {
        let (now, _) = self.now(state);
        state.advance(now);
        self.irq.set(state.memory[reg::B] & state.flags & INTERRUPTS != 0);
        let next = state.next_event();
        if next != state.armed {
            state.armed = next;
            state.timer.arm(next.map(|at| Duration::from_nanos(u64::try_from(at - now).unwrap_or(0))));
        }
    }

    fn expired(&self) {
        let mut state = lock(&self.state);
        // Even if nothing has happened yet (the host's clock was set back), a new deadline is due.
        state.armed = None;
        self.update(&mut state);
    }
}

impl Rtc {
    /// A clock that shows the host's UTC and raises `irq` (8); its timer runs on `executor`. Fails when the host is
    /// out of file descriptors.
    pub fn new(
        sizes: CmosSizes,
        clock: Arc<dyn Clock>,
        irq: Arc<dyn IrqLine>,
        executor: Arc<dyn Executor>,
    ) -> std::io::Result<Rtc> {
        let state = State {
            index: 0,
            memory: sizes.memory(),
            offset: 0,
            phase: 0,
            weekday_offset: 0,
            fraction: 0,
            flags: 0,
            seen: clock.wall(),
            timer: Timer::new()?,
            armed: None,
        };
        let shared = Arc::new(Shared { clock, irq, state: Mutex::new(state) });
        Ok(Rtc { shared, work: Work::new(executor) })
    }
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = lock(&self.shared.state);
        for (byte, at) in data.iter_mut().zip(offset..) {
            // The index can't be read back.
            if at == 1 {
                let (now, _) = self.shared.now(&state);
                *byte = state.read(now);
                if usize::from(state.index & !NMI_OFF) == reg::C {
                    // The line falls even if the next event has come meanwhile: the interrupt controller counts edges.
                    self.shared.irq.set(false);
                    self.shared.update(&mut state);
                }
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        let mut state = lock(&self.shared.state);
        for (&byte, at) in data.iter().zip(offset..) {
            match at {
                0 => state.index = byte,
                1 => {
                    let (now, wall) = self.shared.now(&state);
                    state.write(byte, now, wall);
                    self.shared.update(&mut state);
                }
                _ => (),
            }
        }
        None
    }
}

struct Ticker(Arc<Shared>);

impl Task for Ticker {
    fn descriptors(&self) -> Vec<(RawFd, u32)> {
        vec![(lock(&self.0.state).timer.descriptor(), 0)]
    }

    fn start(&mut self) {
        self.0.expired();
    }

    fn ready(&mut self, _: u32) {
        self.0.expired();
    }

    fn stopped(self: Box<Self>) {}
}

impl Component for Rtc {
    fn name(&self) -> String {
        "rtc".into()
    }

    fn pause(&self) {
        self.work.stop();
    }

    fn resume(&self) {
        self.work.start(|| Box::new(Ticker(self.shared.clone())));
    }

    fn reset(&self) {
        let mut state = lock(&self.shared.state);
        state.index = 0;
        state.flags = 0;
        state.memory[reg::B] &= !(INTERRUPTS | SQUARE_WAVE);
        // Every reset of this machine starts the firmware afresh, so no resume path may be left over in here.
        state.memory[reg::SHUTDOWN_STATUS] = 0;
        self.shared.update(&mut state);
    }

    fn save(&self) -> Result<Section, StateError> {
        let mut state = lock(&self.shared.state);
        let (now, _) = self.shared.now(&state);
        state.advance(now);
        let State { index, memory, offset, phase, weekday_offset, fraction, flags, seen: _, timer: _, armed: _ } =
            &*state;
        let kept = RtcState {
            index: *index,
            memory: memory.to_vec(),
            offset: *offset,
            phase: *phase,
            weekday_offset: *weekday_offset,
            fraction: *fraction,
            flags: *flags,
        };
        Section::encode(&self.name(), &kept)
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let RtcState { index, memory, offset, phase, weekday_offset, fraction, flags } = section.decode()?;
        let wrong = |why: &str| StateError::invalid(self.name(), why);
        let mut state = lock(&self.shared.state);
        let memory = memory.try_into().map_err(|_| wrong("its memory does not have 128 bytes"))?;
        let fits = (0..SECOND).contains(&phase) && (0..SECOND).contains(&fraction) && weekday_offset < 7;
        if !fits || !(-MAX_OFFSET..MAX_OFFSET).contains(&offset) {
            return Err(wrong("its time can't be set"));
        }
        state.index = index;
        state.memory = memory;
        state.offset = offset;
        state.phase = phase;
        state.weekday_offset = weekday_offset;
        state.fraction = fraction;
        state.flags = flags & INTERRUPTS;
        state.memory[reg::A] &= !UPDATE_IN_PROGRESS;
        state.seen = self.shared.now(&state).0;
        self.shared.update(&mut state);
        Ok(())
    }
}

#[cfg(test)]
#[path = "rtc_tests.rs"]
mod tests;
