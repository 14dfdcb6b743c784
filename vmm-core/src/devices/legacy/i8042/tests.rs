use super::*;
use crate::base::InlineExecutor;
use crate::testkit::FakeLine;

/// Linux key codes.
mod k {
    pub const LEFT_CTRL: u16 = 29;
    pub const A: u16 = 30;
    pub const LEFT_SHIFT: u16 = 42;
    pub const LEFT_ALT: u16 = 56;
    pub const CAPS_LOCK: u16 = 58;
    pub const SYSRQ: u16 = 99;
    pub const RIGHT_ALT: u16 = 100;
    pub const UP: u16 = 103;
    pub const PAUSE: u16 = 119;
    pub const HANGEUL: u16 = 122;
    pub const NEXT_SONG: u16 = 163;
}

struct Fixture {
    keyboard: InputPort,
    pointer: InputPort,
    irq1: FakeLine,
    irq12: FakeLine,
    executor: InlineExecutor,
    device: I8042,
}

fn fixture() -> Fixture {
    let (keyboard, pointer) = (InputPort::new().unwrap(), InputPort::new().unwrap());
    let (irq1, irq12) = (FakeLine::default(), FakeLine::default());
    let executor = InlineExecutor::new().unwrap();
    let device = I8042::new(
        keyboard.clone(),
        pointer.clone(),
        Arc::new(irq1.clone()),
        Arc::new(irq12.clone()),
        Arc::new(executor.clone()),
    )
    .unwrap();
    device.resume();
    executor.turn(8);
    Fixture { keyboard, pointer, irq1, irq12, executor, device }
}

impl Fixture {
    fn status(&self) -> u8 {
        let mut byte = [0xff];
        self.device.read(COMMAND, &mut byte);
        byte[0]
    }

    fn command(&self, byte: u8) -> Option<Action> {
        self.device.write(COMMAND, &[byte])
    }

    fn data(&self, byte: u8) -> Option<Action> {
        self.device.write(DATA, &[byte])
    }

    /// Everything that waits, and whether it came from the mouse.
    fn bytes_and_sources(&self) -> Vec<(u8, bool)> {
        let mut all = Vec::new();
        while self.status() & status::OUTPUT_FULL != 0 {
            let from_mouse = self.status() & status::FROM_MOUSE != 0;
            let mut byte = [0xff];
            self.device.read(DATA, &mut byte);
            all.push((byte[0], from_mouse));
        }
        all
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes_and_sources().into_iter().map(|(byte, _)| byte).collect()
    }

    fn set_control(&self, byte: u8) {
        self.command(0x60);
        self.data(byte);
    }

    /// Sends bytes to the keyboard and returns what comes back.
    fn to_keyboard(&self, bytes: &[u8]) -> Vec<u8> {
        bytes
            .iter()
            .flat_map(|&byte| {
                self.data(byte);
                self.bytes()
            })
            .collect()
    }

    /// Sends bytes to the mouse and returns what comes back.
    fn to_mouse(&self, bytes: &[u8]) -> Vec<u8> {
        let send = |&byte: &u8| {
            self.command(0xd4);
            self.data(byte);
            self.bytes()
        };
        bytes.iter().flat_map(send).collect()
    }

    fn key(&self, key: u16, value: i32) {
        self.keyboard.send(&[InputEvent { kind: ev::KEY, code: key, value }]);
        self.executor.turn(8);
    }

    /// What a press and a release send.
    fn stroke(&self, key: u16) -> Vec<u8> {
        self.key(key, 1);
        self.key(key, 0);
        self.bytes()
    }

    fn point(&self, events: &[(u16, u16, i32)]) {
        let report: Vec<_> = events.iter().map(|&(kind, code, value)| InputEvent { kind, code, value }).collect();
        self.pointer.send(&report);
        self.executor.turn(8);
    }

    fn moved(&self, x: i32, y: i32) {
        self.point(&[(ev::REL, code::REL_X, x), (ev::REL, code::REL_Y, y)]);
    }

    fn wait_for_repeat(&self) {
        let mut state = lock(&self.device.shared.state);
        state.keyboard.repeat();
        self.device.shared.update(&mut state);
    }
}

#[test]
fn firmware_finds_a_controller_that_passes_its_tests() {
    let guest = fixture();
    assert_eq!(guest.status(), 0x18);
    guest.command(0xad);
    guest.command(0xa7);
    guest.command(0xaa);
    assert_eq!(guest.status(), 0x1d);
    assert_eq!(guest.bytes(), [0x55]);
    assert_eq!(guest.status(), 0x1c);
    for command in [0xab, 0xa9] {
        guest.command(command);
        assert_eq!(guest.bytes(), [0x00]);
    }
    guest.command(0x20);
    assert_eq!(guest.bytes(), [0x77]);
    guest.set_control(0xff);
    guest.command(0x20);
    assert_eq!(guest.bytes(), [0x77]);
    guest.set_control(0x30);
    assert_eq!(guest.status() & status::SYSTEM, 0);
    guest.command(0x7f);
    guest.data(0x42);
    guest.command(0x3f);
    assert_eq!(guest.bytes(), [0x42]);
    guest.command(0xa4);
    guest.command(0xc0);
    assert_eq!(guest.bytes(), [0xf1, 0x80]);
}

#[test]
fn the_ways_to_reset_reset_and_a20_is_remembered() {
    let guest = fixture();
    assert_eq!(guest.command(0xfe), Some(Action::Reset));
    assert_eq!(guest.command(0xf0), Some(Action::Reset));
    assert_eq!(guest.command(0xff), None);
    guest.command(0xd0);
    assert_eq!(guest.bytes(), [0xc3]);
    guest.command(0xd1);
    assert_eq!(guest.data(0xdd), None);
    guest.command(0xd0);
    assert_eq!(guest.bytes(), [0xc1]);
    guest.command(0xdf);
    guest.command(0xd0);
    assert_eq!(guest.bytes(), [0xc3]);
    guest.command(0xd1);
    assert_eq!(guest.data(0x02), Some(Action::Reset));
}

#[test]
fn the_keyboard_answers_its_commands() {
    let guest = fixture();
    guest.set_control(0);
    assert_eq!(guest.to_keyboard(&[0xff]), [0xfa, 0xaa]);
    assert_eq!(guest.to_keyboard(&[0xf2]), [0xfa, 0xab, 0x83]);
    assert_eq!(
        guest.to_keyboard(&[0xee, 0xed, 0x07, 0xf3, 0x00, 0xf4, 0xf5, 0xf6]),
        [0xee, 0xfa, 0xfa, 0xfa, 0xfa, 0xfa, 0xfa, 0xfa]
    );
    assert_eq!(guest.to_keyboard(&[0xf0, 0x00]), [0xfa, 0xfa, 0x02]);
    assert_eq!(guest.to_keyboard(&[0xf0, 0x03, 0xf0, 0x00]), [0xfa, 0xfa, 0xfa, 0xfa, 0x03]);
    assert_eq!(guest.to_keyboard(&[0xf0, 0x04]), [0xfa, 0xfe]);
    assert_eq!(guest.to_keyboard(&[0xf8, 0xfb, 0x16, 0x1e, 0xf4]), [0xfa; 5]);
    assert_eq!(guest.to_keyboard(&[0xe5, 0xfe]), [0xfe, 0xfe]);
    // A command where a parameter should be.
    assert_eq!(guest.to_keyboard(&[0xed, 0xf2]), [0xfa, 0xfa, 0xab, 0x83]);
    guest.set_control(control::TRANSLATE);
    assert_eq!(guest.to_keyboard(&[0xf2]), [0xfa, 0xab, 0x41]);
}

#[test]
fn keys_arrive_in_every_set() {
    let guest = fixture();
    assert_eq!(guest.stroke(k::A), [0x1e, 0x9e]);
    assert_eq!(guest.stroke(k::RIGHT_ALT), [0xe0, 0x38, 0xe0, 0xb8]);
    assert_eq!(guest.stroke(k::NEXT_SONG), [0xe0, 0x19, 0xe0, 0x99]);
    guest.set_control(0);
    assert_eq!(guest.stroke(k::UP), [0xe0, 0x75, 0xe0, 0xf0, 0x75]);
    guest.to_keyboard(&[0xf0, 0x01]);
    assert_eq!(guest.stroke(k::UP), [0xe0, 0x48, 0xe0, 0xc8]);
    guest.to_keyboard(&[0xf0, 0x03]);
    assert_eq!(guest.stroke(k::UP), [0x63, 0xf0, 0x63]);
    assert_eq!(guest.stroke(k::CAPS_LOCK), [0x14, 0xf0, 0x14]);
    assert_eq!(guest.stroke(k::PAUSE), [0x62, 0xf0, 0x62]);
    assert_eq!(guest.stroke(k::NEXT_SONG), [0; 0]);
}

#[test]
fn print_and_pause_send_what_their_modifiers_make_of_them() {
    let guest = fixture();
    assert_eq!(guest.stroke(k::SYSRQ), [0xe0, 0x2a, 0xe0, 0x37, 0xe0, 0xb7, 0xe0, 0xaa]);
    assert_eq!(guest.stroke(k::PAUSE), [0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5]);
    guest.key(k::LEFT_ALT, 1);
    guest.bytes();
    assert_eq!(guest.stroke(k::SYSRQ), [0x54, 0xd4]);
    guest.key(k::LEFT_ALT, 0);
    guest.key(k::LEFT_CTRL, 1);
    guest.bytes();
    assert_eq!(guest.stroke(k::SYSRQ), [0xe0, 0x37, 0xe0, 0xb7]);
    assert_eq!(guest.stroke(k::PAUSE), [0xe0, 0x46, 0xe0, 0xc6]);
    guest.key(k::LEFT_CTRL, 0);
    guest.set_control(0);
    guest.bytes();
    assert_eq!(guest.stroke(k::PAUSE), [0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77]);
    assert_eq!(guest.stroke(k::HANGEUL), [0xf2]);
}

#[test]
fn each_byte_brings_an_edge_of_its_own() {
    let guest = fixture();
    guest.key(k::A, 1);
    assert_eq!((guest.irq1.level(), guest.irq1.edges()), (true, 1));
    guest.key(k::A, 0);
    assert_eq!(guest.irq1.edges(), 1);
    guest.bytes();
    assert_eq!((guest.irq1.level(), guest.irq1.edges(), guest.irq12.edges()), (false, 2, 0));
    guest.set_control(control::MOUSE_INTERRUPT);
    guest.key(k::A, 1);
    assert!(!guest.irq1.level());
    guest.set_control(control::KEYBOARD_INTERRUPT);
    assert!(guest.irq1.level());
    guest.bytes();
    // As Linux tests the mouse's interrupt.
    guest.set_control(control::MOUSE_INTERRUPT);
    guest.command(0xd3);
    guest.data(0xa5);
    assert!(guest.irq12.level());
    assert_eq!(guest.bytes_and_sources(), [(0xa5, true)]);
    assert!(!guest.irq12.level());
}

#[test]
fn a_keyboard_that_is_switched_off_waits_and_one_that_does_not_scan_is_deaf() {
    let guest = fixture();
    guest.command(0xad);
    guest.key(k::A, 1);
    assert_eq!(guest.bytes(), [0; 0]);
    guest.command(0xae);
    assert_eq!(guest.bytes(), [0x1e]);
    guest.key(k::A, 0);
    guest.to_keyboard(&[0xf5]);
    assert_eq!(guest.stroke(k::A), [0; 0]);
    guest.to_keyboard(&[0xf4]);
    // A release whose press nobody saw is not told.
    guest.key(k::UP, 0);
    assert_eq!(guest.bytes(), [0; 0]);
}

#[test]
fn an_answer_between_two_bytes_of_a_release_does_not_turn_it_into_a_press() {
    let guest = fixture();
    guest.stroke(k::CAPS_LOCK);
    guest.key(k::UP, 1);
    guest.key(k::CAPS_LOCK, 1);
    guest.key(k::CAPS_LOCK, 0);
    // The guest sets the LEDs before it has read everything.
    guest.data(0xed);
    let bytes = guest.bytes();
    assert_eq!(bytes, [0xe0, 0xfa, 0x48, 0x3a, 0xba]);
}

#[test]
fn a_held_key_repeats_at_the_chosen_rate_and_the_hosts_repeats_are_ignored() {
    let guest = fixture();
    guest.key(k::A, 1);
    guest.key(k::A, 2);
    assert_eq!(guest.bytes(), [0x1e]);
    assert!(lock(&guest.device.shared.state).timer.is_armed());
    guest.wait_for_repeat();
    // The guest does not look: one repetition waits in the buffer and one behind it.
    for _ in 0..20 {
        guest.wait_for_repeat();
    }
    assert_eq!(guest.bytes(), [0x1e, 0x1e]);
    // Another key takes over, and its release ends it although the first is still held.
    guest.key(k::UP, 1);
    guest.bytes();
    guest.wait_for_repeat();
    assert_eq!(guest.bytes(), [0xe0, 0x48]);
    guest.key(k::UP, 0);
    assert!(!lock(&guest.device.shared.state).timer.is_armed());
    guest.bytes();
    guest.wait_for_repeat();
    assert_eq!(guest.bytes(), [0; 0]);

    let mut keyboard = Keyboard::default();
    keyboard.take_timer();
    keyboard.write(0xf3);
    keyboard.write(0x00);
    keyboard.key(k::A, true);
    assert_eq!(keyboard.take_timer().flatten().unwrap().as_millis(), 250);
    keyboard.repeat();
    assert_eq!(keyboard.take_timer().flatten().unwrap().as_millis(), 33);
    keyboard.write(0xf3);
    keyboard.write(0x7f);
    keyboard.repeat();
    assert_eq!(keyboard.take_timer().flatten().unwrap().as_millis(), 500);
    keyboard.key(k::A, false);
    assert_eq!(keyboard.take_timer(), Some(None));
}

#[test]
fn a_guest_that_never_reads_loses_presses_but_no_release_of_what_it_got() {
    let guest = fixture();
    for _ in 0..10 {
        for key in 2..60 {
            guest.key(key, 1);
        }
    }
    for key in 2..60 {
        guest.key(key, 0);
    }
    let bytes = guest.bytes();
    let (pressed, released): (Vec<u8>, Vec<u8>) = bytes.iter().partition(|&&b| b < 0x80);
    let released: Vec<u8> = released.iter().map(|b| b & 0x7f).collect();
    assert_eq!(pressed, released);
    assert!(pressed.len() >= 50);
}

#[test]
fn a_better_driver_takes_over_and_nothing_stays_pressed() {
    let guest = fixture();
    guest.to_mouse(&[0xf4]);
    guest.key(k::LEFT_SHIFT, 1);
    guest.point(&[(ev::KEY, code::BTN_LEFT, 1)]);
    guest.bytes();
    guest.keyboard.claim(true);
    guest.pointer.claim(true);
    guest.executor.turn(8);
    assert_eq!(guest.bytes(), [0xaa, 0x08, 0, 0]);
    guest.key(k::A, 1);
    guest.moved(1, 1);
    assert_eq!(guest.bytes(), [0; 0]);
    assert_eq!(guest.keyboard.receive(), Some(InputEvent::key(k::A, true)));
    guest.keyboard.claim(false);
    guest.key(k::A, 0);
    assert_eq!(guest.stroke(k::A), [0x1e, 0x9e]);
}

#[test]
fn the_mouse_answers_its_commands() {
    let guest = fixture();
    assert_eq!(guest.to_mouse(&[0xff]), [0xfa, 0xaa, 0x00]);
    assert_eq!(guest.to_mouse(&[0xf2]), [0xfa, 0x00]);
    assert_eq!(guest.to_mouse(&[0xe9]), [0xfa, 0x00, 0x02, 0x64]);
    assert_eq!(guest.to_mouse(&[0xe8, 0x03, 0xf3, 0x28, 0xe7, 0xf4]), [0xfa; 6]);
    assert_eq!(guest.to_mouse(&[0xe9]), [0xfa, 0x30, 0x03, 0x28]);
    assert_eq!(guest.to_mouse(&[0xf6, 0xe6, 0xea, 0xf5]), [0xfa; 4]);
    assert_eq!(guest.to_mouse(&[0xee, 0x55, 0xf4, 0xec]), [0xfa, 0x55, 0xf4, 0xfa]);
    assert_eq!(guest.to_mouse(&[0x12, 0xfe]), [0xfe, 0xfe]);
    guest.command(0xd4);
    guest.data(0xf2);
    assert_eq!(guest.bytes_and_sources(), [(0xfa, true), (0x00, true)]);
}

#[test]
fn the_knocks_bring_out_the_wheel_and_the_extra_buttons() {
    let guest = fixture();
    let wheel = [0xf3, 200, 0xf3, 100, 0xf3, 80];
    let extra = [0xf3, 200, 0xf3, 200, 0xf3, 80];
    guest.to_mouse(&wheel);
    assert_eq!(guest.to_mouse(&[0xf2, 0xf4]), [0xfa, 0x03, 0xfa]);
    guest.point(&[(ev::REL, code::REL_WHEEL, 1)]);
    assert_eq!(guest.bytes(), [0x08, 0, 0, 0xff]);
    guest.point(&[(ev::KEY, code::BTN_SIDE, 1)]);
    assert_eq!(guest.bytes(), [0; 0]);
    guest.to_mouse(&extra);
    assert_eq!(guest.to_mouse(&[0xf2, 0xf4]), [0xfa, 0x04, 0xfa]);
    guest.point(&[(ev::REL, code::REL_WHEEL, -2), (ev::KEY, code::BTN_EXTRA, 1)]);
    assert_eq!(guest.bytes(), [0x08, 0, 0, 0x32]);
    // More notches than a packet can tell of.
    guest.point(&[(ev::REL, code::REL_WHEEL, 9)]);
    assert_eq!(guest.bytes(), [0x08, 0, 0, 0x39, 0x08, 0, 0, 0x3e]);
    guest.to_mouse(&[0xff]);
    assert_eq!(guest.to_mouse(&[0xf2]), [0xfa, 0x00]);
}

#[test]
fn movement_adds_up_while_nobody_looks_and_is_told_in_steps_that_fit() {
    let guest = fixture();
    guest.to_mouse(&[0xf4]);
    guest.moved(3, 4);
    assert!(guest.irq12.level());
    guest.moved(-10, 300);
    guest.moved(0, 0);
    assert_eq!(guest.bytes(), [0x28, 3, 0xfc, 0x38, 0xf6, 0x01, 0x28, 0, 0xd3]);
    for _ in 0..100 {
        guest.moved(i32::MAX, i32::MIN);
    }
    let bytes = guest.bytes();
    assert_eq!(bytes[..3], [0x08, 0xff, 0xff]);
    assert!(bytes.len() <= 3 * 10);
    // Positions are for better drivers.
    guest.point(&[(ev::ABS, code::ABS_X, 77), (ev::REL, code::REL_HWHEEL, 1)]);
    assert_eq!(guest.bytes(), [0; 0]);
}

#[test]
fn a_click_between_two_looks_is_not_lost() {
    let guest = fixture();
    guest.to_mouse(&[0xf4]);
    guest.moved(1, 0);
    guest.point(&[(ev::KEY, code::BTN_LEFT, 1)]);
    guest.point(&[(ev::KEY, code::BTN_LEFT, 0)]);
    guest.point(&[(ev::KEY, code::BTN_RIGHT, 1), (ev::KEY, code::BTN_MIDDLE, 1)]);
    let first: Vec<u8> = guest.bytes().chunks(3).map(|packet| packet[0]).collect();
    assert_eq!(first, [0x08, 0x09, 0x08, 0x0a, 0x0e]);
    for _ in 0..1000 {
        guest.point(&[(ev::KEY, code::BTN_LEFT, 1)]);
        guest.point(&[(ev::KEY, code::BTN_LEFT, 0)]);
    }
    guest.point(&[(ev::KEY, code::BTN_MIDDLE, 0)]);
    let bytes = guest.bytes();
    assert_eq!((bytes.len() % 3, bytes[bytes.len() - 3]), (0, 0x0a));
    assert!(bytes.len() <= 3 * 24);
}

#[test]
fn a_mouse_that_does_not_report_forgets_and_a_remote_one_is_asked() {
    let guest = fixture();
    guest.moved(5, 5);
    guest.to_mouse(&[0xf4]);
    assert_eq!(guest.bytes(), [0; 0]);
    guest.to_mouse(&[0xf0]);
    guest.moved(7, -1);
    assert_eq!(guest.bytes(), [0; 0]);
    assert_eq!(guest.to_mouse(&[0xeb]), [0xfa, 0x08, 7, 1]);
    guest.to_mouse(&[0xea, 0xe7]);
    guest.moved(-5, 20);
    assert_eq!(guest.bytes(), [0x38, 0xf7, 0xd8]);
}

#[test]
fn a_paused_controller_takes_nothing_and_a_resumed_one_catches_up() {
    let guest = fixture();
    guest.device.pause();
    guest.key(k::A, 1);
    assert_eq!(guest.bytes(), [0; 0]);
    guest.device.resume();
    guest.executor.turn(8);
    assert_eq!(guest.bytes(), [0x1e]);
}

#[test]
fn a_restored_controller_goes_on_and_lets_go_of_what_was_held() {
    let guest = fixture();
    guest.to_mouse(&[0xf3, 200, 0xf3, 100, 0xf3, 80, 0xf4]);
    guest.set_control(0x47);
    guest.moved(9, 9);
    guest.key(k::UP, 1);
    guest.command(0x20);
    guest.command(0xd4);
    guest.device.pause();
    let section = guest.device.save().unwrap();
    let fresh = fixture();
    fresh.device.restore(&section).unwrap();
    assert_eq!(fresh.status(), guest.status());
    fresh.data(0xf2);
    let wanted = [
        // The movement was first in the buffer, then come the controller's answer, the key's rest and its release.
        0x28, 0x47, 0xe0, 0x48, 0xe0, 0xc8, 0xfa, 0x03, 9, 0xf7, 0,
    ];
    assert_eq!(fresh.bytes(), wanted);
    // With nothing held a state comes back as it was.
    let section = fresh.device.save().unwrap();
    let another = fixture();
    another.device.restore(&section).unwrap();
    assert_eq!(another.device.save().unwrap(), section);
}

#[test]
fn states_that_no_device_can_be_in_are_refused() {
    let guest = fixture();
    let section = guest.device.save().unwrap();
    let damage = |change: &dyn Fn(&mut ciborium::Value)| {
        let mut value: ciborium::Value = ciborium::from_reader(section.bytes.as_slice()).unwrap();
        change(&mut value);
        let mut bytes = Vec::new();
        ciborium::into_writer(&value, &mut bytes).unwrap();
        guest.device.restore(&Section { bytes, ..section.clone() })
    };
    fn field<'a>(value: &'a mut ciborium::Value, name: &str) -> &'a mut ciborium::Value {
        let map = value.as_map_mut().unwrap();
        &mut map.iter_mut().find(|(key, _)| key.as_text() == Some(name)).unwrap().1
    }
    let long = || ciborium::Value::Array(vec![0.into(); 3000]);
    assert!(damage(&|_| ()).is_ok());
    assert!(damage(&|v| *field(field(v, "keyboard"), "set") = 4.into()).is_err());
    assert!(damage(&|v| *field(field(v, "keyboard"), "codes") = long()).is_err());
    assert!(damage(&|v| *field(field(v, "mouse"), "identity") = 1.into()).is_err());
    assert!(damage(&|v| *field(field(v, "mouse"), "packets") = long()).is_err());
    assert!(damage(&|v| *field(v, "ram") = long()).is_err());
}

#[test]
fn reset_forgets_everything_and_lowers_the_lines() {
    let guest = fixture();
    guest.to_mouse(&[0xf4]);
    guest.key(k::A, 1);
    guest.moved(1, 1);
    assert!(guest.irq1.level());
    guest.device.pause();
    guest.key(k::UP, 1);
    guest.device.reset();
    assert_eq!(guest.keyboard.receive(), None);
    assert_eq!((guest.irq1.level(), guest.irq12.level(), guest.status()), (false, false, 0x18));
    assert_eq!(guest.device.save().unwrap(), fixture().device.save().unwrap());
}

#[test]
fn no_sequence_of_commands_panics_or_grows_without_bound() {
    let guest = fixture();
    for round in 0..3u32 {
        for command in 0..=255u8 {
            guest.command(command);
            for data in [0, 0x80, 0xee, 0xff, command] {
                guest.data(data);
            }
            guest.moved(1, 1);
            guest.key(u16::from(command) + 1, (round & 1) as i32);
        }
    }
    assert!(guest.device.save().unwrap().bytes.len() < 16 * 1024);
    for offset in 0..5 {
        for len in [1, 2, 4, 8] {
            guest.device.write(offset, &vec![0xff; len]);
            guest.device.read(offset, &mut vec![0; len]);
        }
    }
}

#[test]
fn a_key_is_taken_when_the_guest_has_read_all_of_its_code() {
    let fixture = fixture();
    assert!(fixture.keyboard.is_taken());
    // Two bytes in set 2's translation, and in the guest's hands one by one.
    fixture.key(k::UP, 1);
    assert!(!fixture.keyboard.is_taken());
    let mut byte = [0];
    fixture.device.read(DATA, &mut byte);
    assert!(!fixture.keyboard.is_taken());
    fixture.device.read(DATA, &mut byte);
    assert!(fixture.keyboard.is_taken());
    // Of one that another driver has it says nothing.
    fixture.keyboard.claim(true);
    fixture.key(k::UP, 0);
    while fixture.keyboard.receive().is_some() {}
    fixture.executor.turn(8);
    assert!(!fixture.keyboard.is_taken());
}
