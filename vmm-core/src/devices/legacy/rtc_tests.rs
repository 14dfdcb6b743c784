use super::super::clock::fake::FakeClock;
use super::*;
use crate::base::InlineExecutor;
use crate::testkit::FakeLine;

/// 2024-02-29 23:59:58 UTC, a Thursday.
const LEAP_DAY: i64 = 1_709_251_198 * SECOND;

struct Fixture {
    clock: FakeClock,
    irq: FakeLine,
    rtc: Rtc,
}

fn fixture() -> Fixture {
    let (clock, irq) = (FakeClock::at(LEAP_DAY), FakeLine::default());
    let sizes = CmosSizes { low_ram: 2 << 30, high_ram: 6 << 30, cpus: 4 };
    let executor = Arc::new(InlineExecutor::new().unwrap());
    let rtc = Rtc::new(sizes, Arc::new(clock.clone()), Arc::new(irq.clone()), executor).unwrap();
    Fixture { clock, irq, rtc }
}

impl Fixture {
    fn get(&self, index: usize) -> u8 {
        self.rtc.write(0, &[index as u8]);
        let mut byte = [0xff];
        self.rtc.read(1, &mut byte);
        byte[0]
    }

    fn set(&self, index: usize, byte: u8) {
        self.rtc.write(0, &[index as u8]);
        self.rtc.write(1, &[byte]);
    }

    fn time(&self) -> TimeBytes {
        TIME.map(|at| self.get(at))
    }

    fn set_time(&self, bytes: TimeBytes) {
        for (at, byte) in TIME.into_iter().zip(bytes) {
            self.set(at, byte);
        }
    }

    /// Lets time pass, and the host's timer expire if it was due.
    fn pass(&self, nanoseconds: i64) {
        self.clock.turn(nanoseconds);
        let armed = lock(&self.rtc.shared.state).armed;
        if armed.is_some_and(|at| at <= self.rtc.shared.now(&lock(&self.rtc.shared.state)).0) {
            self.rtc.shared.expired();
        }
    }
}

#[test]
fn it_shows_the_hosts_utc_in_bcd_and_rolls_over_a_leap_day() {
    let guest = fixture();
    assert_eq!(guest.time(), [0x58, 0x59, 0x23, 0x05, 0x29, 0x02, 0x24, 0x20]);
    guest.pass(2 * SECOND);
    assert_eq!(guest.time(), [0x00, 0x00, 0x00, 0x06, 0x01, 0x03, 0x24, 0x20]);
    assert_eq!((guest.get(reg::A), guest.get(reg::B), guest.get(reg::D)), (0x26, 0x02, 0x80));
    let mut index = [0xff];
    guest.rtc.read(0, &mut index);
    assert_eq!(index, [0xff]);
}

#[test]
fn binary_and_twelve_hours_are_other_ways_to_say_it() {
    let guest = fixture();
    guest.set(reg::B, BINARY);
    assert_eq!(guest.time(), [58, 59, 0x80 | 11, 5, 29, 2, 24, 20]);
    guest.pass(2 * SECOND);
    assert_eq!(guest.get(reg::HOURS), 12);
    guest.pass(12 * 3600 * SECOND);
    assert_eq!(guest.get(reg::HOURS), 0x80 | 12);
    guest.set(reg::B, 0);
    assert_eq!(guest.get(reg::HOURS), 0x92);
    guest.pass(3600 * SECOND);
    assert_eq!(guest.get(reg::HOURS), 0x81);
}

#[test]
fn a_time_that_the_guest_sets_goes_on_from_there() {
    let guest = fixture();
    guest.pass(SECOND / 4);
    guest.set(reg::B, SET | HOURS_24 | UPDATE);
    assert_eq!(guest.get(reg::B), SET | HOURS_24);
    let evening = [0x59, 0x59, 0x23, 0x02, 0x31, 0x12, 0x99, 0x19];
    guest.set_time(evening);
    guest.pass(100 * SECOND);
    assert_eq!(guest.time(), evening);
    guest.set(reg::B, HOURS_24);
    assert_eq!(guest.time(), evening);
    // A quarter of the second was over when the clock was stopped.
    guest.pass(SECOND * 3 / 4);
    // Its weekday was set to Monday, although 1999-12-31 was a Friday.
    assert_eq!(guest.time(), [0, 0, 0, 3, 1, 1, 0, 0x20]);
}

#[test]
fn a_time_register_can_be_set_while_the_clock_runs() {
    let guest = fixture();
    guest.set(reg::MINUTES, 0x10);
    assert_eq!(guest.time(), [0x58, 0x10, 0x23, 0x05, 0x29, 0x02, 0x24, 0x20]);
}

#[test]
fn the_first_update_comes_half_a_second_after_the_divider_starts() {
    let guest = fixture();
    guest.set(reg::B, SET | HOURS_24);
    guest.set(reg::A, 0x70);
    guest.set(reg::SECONDS, 0x30);
    guest.set(reg::B, HOURS_24);
    guest.pass(10 * SECOND);
    assert_eq!(guest.get(reg::SECONDS), 0x30);
    guest.set(reg::A, 0x26);
    guest.pass(SECOND / 2 - 1);
    assert_eq!(guest.get(reg::SECONDS), 0x30);
    guest.pass(1);
    assert_eq!(guest.get(reg::SECONDS), 0x31);
}

#[test]
fn update_in_progress_warns_244_microseconds_ahead() {
    let guest = fixture();
    guest.pass(SECOND - UPDATE_WARNING - 1);
    assert_eq!(guest.get(reg::A), 0x26);
    guest.pass(1);
    assert_eq!(guest.get(reg::A), 0xa6);
    guest.set(reg::B, SET | HOURS_24);
    assert_eq!(guest.get(reg::A), 0x26);
}

#[test]
fn the_update_interrupt_comes_each_second_once_the_last_was_read() {
    let guest = fixture();
    guest.set(reg::B, HOURS_24 | UPDATE);
    guest.pass(SECOND - 1);
    assert!(!guest.irq.level());
    guest.pass(1);
    assert!(guest.irq.level());
    guest.pass(SECOND);
    assert_eq!(guest.irq.edges(), 1);
    assert_eq!((guest.get(reg::C) & 0x90, guest.irq.level()), (0x90, false));
    assert_eq!(guest.get(reg::C), 0);
    guest.pass(SECOND);
    assert_eq!(guest.irq.edges(), 2);
}

#[test]
fn flags_are_set_for_a_guest_that_polls_them() {
    let guest = fixture();
    assert_eq!(guest.get(reg::C), 0);
    guest.pass(SECOND / 1024 + 1);
    assert_eq!(guest.get(reg::C), PERIODIC);
    guest.pass(SECOND);
    assert_eq!(guest.get(reg::C), PERIODIC | UPDATE);
}

#[test]
fn the_periodic_interrupt_has_the_chosen_rate() {
    let guest = fixture();
    guest.set(reg::B, HOURS_24 | PERIODIC);
    for (rate, hertz) in [(6u8, 1024), (3, 8192), (15, 2), (1, 256), (2, 128)] {
        guest.set(reg::A, 0x20 | rate);
        guest.get(reg::C);
        let before = guest.irq.edges();
        for _ in 0..hertz {
            guest.pass(SECOND / hertz);
            guest.get(reg::C);
        }
        assert_eq!((guest.irq.edges() - before) as i64, hertz, "rate {rate}");
    }
    guest.set(reg::A, 0x20);
    assert_eq!(lock(&guest.rtc.shared.state).armed, None);
}

#[test]
fn reading_register_c_lets_the_line_fall_even_when_the_next_event_has_come_meanwhile() {
    /// A period of the fastest rate passes whenever it is looked at.
    struct Hurrying(FakeClock);
    impl Clock for Hurrying {
        fn wall(&self) -> i64 {
            self.0.turn(SECOND / 1024);
            self.0.wall()
        }

        fn monotonic(&self) -> u64 {
            self.0.monotonic()
        }
    }
    let (clock, irq) = (FakeClock::at(LEAP_DAY), FakeLine::default());
    let executor = Arc::new(InlineExecutor::new().unwrap());
    let sizes = CmosSizes { low_ram: 2 << 30, high_ram: 0, cpus: 1 };
    let rtc = Rtc::new(sizes, Arc::new(Hurrying(clock.clone())), Arc::new(irq.clone()), executor).unwrap();
    let guest = Fixture { clock, irq, rtc };
    guest.set(reg::B, PERIODIC | HOURS_24);
    for rises in 1..10 {
        assert_eq!((guest.irq.level(), guest.irq.edges()), (true, rises));
        assert_eq!(guest.get(reg::C) & (INTERRUPT_REQUEST | PERIODIC), INTERRUPT_REQUEST | PERIODIC);
    }
}

#[test]
fn the_alarm_matches_what_is_set_and_any_value_where_it_says_so() {
    let guest = fixture();
    guest.set(reg::B, HOURS_24 | ALARM);
    // Half past anything.
    guest.set(reg::SECONDS_ALARM, 0x00);
    guest.set(reg::MINUTES_ALARM, 0x30);
    guest.set(reg::HOURS_ALARM, 0xff);
    guest.pass(1801 * SECOND);
    assert!(!guest.irq.level());
    guest.pass(SECOND);
    assert_eq!((guest.irq.level(), guest.get(reg::C) & 0xa0), (true, 0xa0));
    guest.pass(3600 * SECOND);
    assert_eq!(guest.irq.edges(), 2);
    guest.get(reg::C);
    // Tomorrow at this time, less a minute.
    guest.set(reg::MINUTES_ALARM, 0x29);
    guest.set(reg::HOURS_ALARM, 0x01);
    guest.pass((DAY - 61) * SECOND);
    assert!(!guest.irq.level());
    guest.pass(SECOND);
    assert!(guest.irq.level());
    guest.get(reg::C);
    // A second that never comes.
    guest.set(reg::SECONDS_ALARM, 0x75);
    guest.pass(2 * DAY * SECOND);
    assert_eq!((guest.irq.level(), lock(&guest.rtc.shared.state).armed), (false, None));
}

#[test]
fn a_host_clock_that_jumps_back_brings_no_event() {
    let guest = fixture();
    guest.get(reg::C);
    guest.clock.turn(-10_000 * SECOND);
    assert_eq!(guest.get(reg::C), 0);
    guest.pass(SECOND);
    assert_eq!(guest.get(reg::C), PERIODIC | UPDATE);
}

#[test]
fn cmos_memory_tells_the_machines_sizes_and_keeps_what_is_written() {
    let guest = fixture();
    let word = |at| u16::from_le_bytes([guest.get(at), guest.get(at + 1)]);
    assert_eq!((word(0x15), word(0x17), word(0x30)), (640, 0xffff, 0xffff));
    assert_eq!((word(0x34), word(0x5b), guest.get(0x5d)), (0x7f00, 0x8000, 1));
    assert_eq!((guest.get(0x5f), guest.get(0x0f), guest.get(0x38)), (3, 0, 0));
    let sum: u16 = (0x10..0x2e).map(|at| u16::from(guest.get(at))).sum();
    assert_eq!([guest.get(0x2e), guest.get(0x2f)], sum.to_be_bytes());
    guest.set(0x80 | 0x40, 0x77);
    guest.set(reg::SHUTDOWN_STATUS, 0xfe);
    guest.set(reg::B, HOURS_24 | INTERRUPTS);
    guest.rtc.reset();
    assert_eq!((guest.get(0x40), guest.get(reg::SHUTDOWN_STATUS), guest.get(reg::B)), (0x77, 0, HOURS_24));
}

#[test]
fn every_day_of_four_centuries_is_the_one_after_the_day_before() {
    let mut before = date(-1);
    assert_eq!(before, (1969, 12, 31));
    for count in 0..146_097 {
        let (year, month, day) = date(count);
        assert_eq!(days(year, month, day), count);
        let follows = (year, month, day) == (before.0, before.1, before.2 + 1)
            || day == 1 && (year, month) == (before.0, before.1 + 1)
            || (year, month, day) == (before.0 + 1, 1, 1);
        assert!(follows, "{year}-{month}-{day} after {before:?}");
        before = (year, month, day);
    }
    assert_eq!(before, (2369, 12, 31));
}

#[test]
fn the_last_time_that_a_guest_can_set_is_restored() {
    for mode in [BINARY, 0] {
        let guest = fixture();
        guest.set(reg::B, HOURS_24 | mode);
        guest.set_time([0xff; 8]);
        let section = guest.rtc.save().unwrap();
        let fresh = fixture();
        fresh.rtc.restore(&section).unwrap();
        assert_eq!(fresh.time(), guest.time());
    }
}

#[test]
fn a_restored_clock_shows_the_time_that_it_would_show_now() {
    let guest = fixture();
    guest.set(reg::YEAR, 0x30);
    guest.set(reg::B, HOURS_24 | UPDATE);
    guest.pass(SECOND);
    guest.set(0x50, 1);
    let section = guest.rtc.save().unwrap();
    let fresh = fixture();
    fresh.pass(5 * SECOND);
    fresh.rtc.restore(&section).unwrap();
    assert_eq!(fresh.rtc.save().unwrap(), section);
    assert!(fresh.irq.level());
    guest.pass(4 * SECOND);
    assert_eq!(fresh.time(), guest.time());
}

#[test]
fn impossible_times_in_a_state_are_refused() {
    let guest = fixture();
    let state = || guest.rtc.save().unwrap().decode::<RtcState>().unwrap();
    for damaged in [
        RtcState { memory: vec![0; 127], ..state() },
        RtcState { phase: SECOND, ..state() },
        RtcState { fraction: -1, ..state() },
        RtcState { weekday_offset: 7, ..state() },
        RtcState { offset: i64::MAX, ..state() },
    ] {
        assert!(guest.rtc.restore(&Section::encode("rtc", &damaged).unwrap()).is_err(), "{damaged:?}");
    }
}

#[test]
fn no_register_value_panics() {
    let guest = fixture();
    for b in [0, BINARY, HOURS_24, BINARY | HOURS_24, SET, INTERRUPTS] {
        for value in [0, 1, 0x12, 0x79, 0x80, 0xc0, 0xff] {
            for index in 0..128 {
                guest.set(reg::B, b);
                guest.set(index, value);
                guest.pass(SECOND);
                guest.get(index);
                guest.get(reg::C);
            }
        }
    }
    for offset in 0..2 {
        for len in [1, 2, 4, 8] {
            guest.rtc.write(offset, &vec![0xff; len]);
            guest.rtc.read(offset, &mut vec![0; len]);
        }
    }
}
