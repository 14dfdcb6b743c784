//! Text and key names as presses of a US keyboard: evdev codes (`linux/input-event-codes.h`), which virtio-input carries
//! as they are and the i8042 translates.

use std::thread;
use std::time::{Duration, Instant};

use vmm_core::backend::input::{InputEvent, InputPort};

/// Between two changes of a key, at the least. A BIOS buffers some 15 keys and polls; a guest that sleeps takes a moment to look.
const PACE: Duration = Duration::from_millis(12);
/// How long a guest may leave a change before it counts as one that takes none, and is not waited for until it does.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks at whether it has.
const STEP: Duration = Duration::from_millis(4);
/// The most keys pressed together.
const MAX_CHORD: usize = 8;

/// Codes of the modifiers that typing needs.
const LEFT_SHIFT: u16 = 42;

/// Keys that a character stands on: the character alone, with Shift, and the key's code.
const CHARACTERS: [(char, char, u16); 47] = [
    ('1', '!', 2),
    ('2', '@', 3),
    ('3', '#', 4),
    ('4', '$', 5),
    ('5', '%', 6),
    ('6', '^', 7),
    ('7', '&', 8),
    ('8', '*', 9),
    ('9', '(', 10),
    ('0', ')', 11),
    ('-', '_', 12),
    ('=', '+', 13),
    ('q', 'Q', 16),
    ('w', 'W', 17),
    ('e', 'E', 18),
    ('r', 'R', 19),
    ('t', 'T', 20),
    ('y', 'Y', 21),
    ('u', 'U', 22),
    ('i', 'I', 23),
    ('o', 'O', 24),
    ('p', 'P', 25),
    ('[', '{', 26),
    (']', '}', 27),
    ('a', 'A', 30),
    ('s', 'S', 31),
    ('d', 'D', 32),
    ('f', 'F', 33),
    ('g', 'G', 34),
    ('h', 'H', 35),
    ('j', 'J', 36),
    ('k', 'K', 37),
    ('l', 'L', 38),
    (';', ':', 39),
    ('\'', '"', 40),
    ('`', '~', 41),
    ('\\', '|', 43),
    ('z', 'Z', 44),
    ('x', 'X', 45),
    ('c', 'C', 46),
    ('v', 'V', 47),
    ('b', 'B', 48),
    ('n', 'N', 49),
    ('m', 'M', 50),
    (',', '<', 51),
    ('.', '>', 52),
    ('/', '?', 53),
];

/// Keys with a name.
const NAMES: [(&str, u16); 77] = [
    ("esc", 1),
    ("escape", 1),
    ("backspace", 14),
    ("tab", 15),
    ("enter", 28),
    ("return", 28),
    ("ctrl", 29),
    ("control", 29),
    ("shift", LEFT_SHIFT),
    ("rightshift", 54),
    ("alt", 56),
    ("space", 57),
    ("capslock", 58),
    ("f1", 59),
    ("f2", 60),
    ("f3", 61),
    ("f4", 62),
    ("f5", 63),
    ("f6", 64),
    ("f7", 65),
    ("f8", 66),
    ("f9", 67),
    ("f10", 68),
    ("numlock", 69),
    ("scrolllock", 70),
    ("kp0", 82),
    ("kp1", 79),
    ("kp2", 80),
    ("kp3", 81),
    ("kp4", 75),
    ("kp5", 76),
    ("kp6", 77),
    ("kp7", 71),
    ("kp8", 72),
    ("kp9", 73),
    ("kpminus", 74),
    ("kpplus", 78),
    ("kpdot", 83),
    ("kpenter", 96),
    ("kpslash", 98),
    ("kpasterisk", 55),
    ("f11", 87),
    ("f12", 88),
    ("rightctrl", 97),
    ("print", 99),
    ("sysrq", 99),
    ("rightalt", 100),
    ("altgr", 100),
    ("home", 102),
    ("up", 103),
    ("pageup", 104),
    ("left", 105),
    ("right", 106),
    ("end", 107),
    ("down", 108),
    ("pagedown", 109),
    ("insert", 110),
    ("delete", 111),
    ("del", 111),
    ("mute", 113),
    ("volumedown", 114),
    ("volumeup", 115),
    ("pause", 119),
    ("super", 125),
    ("win", 125),
    ("meta", 125),
    ("rightsuper", 126),
    ("menu", 127),
    ("minus", 12),
    ("plus", 13),
    ("comma", 51),
    ("period", 52),
    ("slash", 53),
    ("backslash", 43),
    ("semicolon", 39),
    ("grave", 41),
    ("equal", 13),
];

/// Names that hold another key down: only after one of them does a single character stand for its key.
const MODIFIERS: [&str; 12] = [
    "ctrl",
    "control",
    "shift",
    "alt",
    "super",
    "win",
    "meta",
    "altgr",
    "rightctrl",
    "rightalt",
    "rightshift",
    "rightsuper",
];

/// A change of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The key's evdev code.
    pub code: u16,
    /// Whether it goes down.
    pub pressed: bool,
}

fn stroke(codes: &[u16]) -> impl Iterator<Item = Change> + '_ {
    let down = codes.iter().map(|&code| Change { code, pressed: true });
    down.chain(codes.iter().rev().map(|&code| Change { code, pressed: false }))
}

/// The changes that type a text; a line's end is Enter.
///
/// # Errors
/// A sentence that names the character that is on no key of a US keyboard.
pub fn typing(text: &str) -> Result<Vec<Change>, String> {
    let mut changes = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let codes: &[u16] = match c {
            '\r' if chars.peek() == Some(&'\n') => continue,
            '\n' | '\r' => &[28],
            '\t' => &[15],
            '\u{8}' | '\u{7f}' => &[14],
            '\u{1b}' => &[1],
            ' ' => &[57],
            _ => match CHARACTERS.iter().find(|(plain, shifted, _)| *plain == c || *shifted == c) {
                Some((plain, _, code)) if *plain == c => &[*code],
                Some((_, _, code)) => &[LEFT_SHIFT, *code],
                None => return Err(format!("no key of a US keyboard makes {c:?}")),
            },
        };
        changes.extend(stroke(codes));
    }
    Ok(changes)
}

/// Whether an argument names keys, alone (`enter`) or together (`ctrl-c`), and is no text to type.
pub fn is_name(text: &str) -> bool {
    chord(text).is_ok()
}

/// The changes that press keys together: names joined by `-` or `+`, like `ctrl-alt-delete`.
///
/// # Errors
/// A sentence that says which name is none.
pub fn chord(text: &str) -> Result<Vec<Change>, String> {
    let lower = text.to_lowercase();
    let parts: Vec<&str> = lower.split(['-', '+']).collect();
    if parts.len() > MAX_CHORD {
        return Err(format!("{text:?} is more than {MAX_CHORD} keys"));
    }
    let modified = parts.len() > 1 && parts[..parts.len() - 1].iter().all(|part| MODIFIERS.contains(part));
    let mut codes = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let named = NAMES.iter().find(|(name, _)| name == part).map(|(_, code)| *code);
        let single = || {
            let mut chars = part.chars();
            let (Some(c), None) = (chars.next(), chars.next()) else { return None };
            CHARACTERS.iter().find(|(plain, _, _)| *plain == c).map(|(_, _, code)| *code)
        };
        let last = index + 1 == parts.len();
        let code = named.filter(|_| last || MODIFIERS.contains(part)).or_else(|| single().filter(|_| last && modified));
        codes
            .push(code.ok_or_else(|| format!("{text:?} names no keys; write them like enter, f2 or ctrl-alt-delete"))?);
    }
    Ok(stroke(&codes).collect())
}

/// Sends changes to a guest, one report each, as fast as it takes them and no faster than a BIOS keeps up with.
pub fn send(port: &InputPort, changes: &[Change]) {
    let mut takes = true;
    for change in changes {
        port.send(&[InputEvent::key(change.code, change.pressed)]);
        let until = Instant::now() + if takes { PATIENCE } else { PACE };
        thread::sleep(PACE);
        takes = port.is_taken();
        while !takes && Instant::now() < until {
            thread::sleep(STEP);
            takes = port.is_taken();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use proptest::prelude::*;
    use vmm_core::backend::input::ev;

    use super::*;

    fn down(changes: &[Change]) -> Vec<u16> {
        changes.iter().filter(|c| c.pressed).map(|c| c.code).collect()
    }

    #[test]
    fn a_text_is_typed_with_shift_where_it_needs_it() {
        let changes = typing("a#\n").unwrap();
        let expected =
            [(30, true), (30, false), (42, true), (4, true), (4, false), (42, false), (28, true), (28, false)];
        assert_eq!(changes, expected.map(|(code, pressed)| Change { code, pressed }));
        assert_eq!(down(&typing("\r\n\t ").unwrap()), [28, 15, 57]);
    }

    #[test]
    fn every_printable_ascii_character_has_a_key_of_its_own() {
        let keys: std::collections::BTreeSet<Vec<u16>> =
            (' '..='~').map(|c| down(&typing(&c.to_string()).unwrap())).collect();
        assert_eq!(keys.len(), 95);
        assert!(typing("ü").unwrap_err().contains('ü'));
    }

    #[test]
    fn keys_are_pressed_together_and_released_in_reverse() {
        let changes = chord("Ctrl-Alt-Delete").unwrap();
        assert_eq!(down(&changes), [29, 56, 111]);
        assert_eq!(changes[3..], [111, 56, 29].map(|code| Change { code, pressed: false }));
        assert_eq!(chord("ctrl+alt+f2").unwrap(), chord("ctrl-alt-f2").unwrap());
    }

    #[test]
    fn names_are_told_from_text() {
        for name in ["enter", "F12", "ctrl-c", "shift-tab", "super", "ctrl-minus"] {
            assert!(is_name(name), "{name}");
        }
        for text in ["", "a", "ls", "a-b", "-", "enter-a", "ctrl-", "ctrl-ab", "up-down", "x+y", "ctrl-alt-"] {
            assert!(!is_name(text), "{text}");
        }
    }

    #[test]
    fn a_guest_that_looks_seldom_and_keeps_the_last_key_gets_all_of_them() {
        let port = InputPort::new().unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let (guest, stop) = (port.clone(), done.clone());
        let firmware = thread::spawn(move || {
            let mut typed = Vec::new();
            while !stop.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(30));
                let events: Vec<_> = std::iter::from_fn(|| guest.receive()).collect();
                typed.extend(
                    events.iter().rfind(|event| event.kind == ev::KEY && event.value == 1).map(|event| event.code),
                );
                guest.tell_taken();
            }
            typed
        });
        let changes = chord("f2").unwrap().into_iter().chain(typing("abc").unwrap()).collect::<Vec<_>>();
        send(&port, &changes);
        done.store(true, Ordering::Release);
        assert_eq!(firmware.join().unwrap(), down(&changes));
    }

    #[test]
    fn one_that_takes_nothing_is_not_waited_for_at_each_key() {
        let port = InputPort::new().unwrap();
        let changes = typing(&"a".repeat(100)).unwrap();
        let began = Instant::now();
        send(&port, &changes);
        // 200 changes, and the patience of one.
        assert!((PATIENCE..100 * PATIENCE).contains(&began.elapsed()) && !port.is_taken());
        assert_eq!(std::iter::from_fn(|| port.receive()).filter(|event| event.kind == ev::KEY).count(), 200);
    }

    #[test]
    fn the_tables_have_no_name_or_character_twice() {
        let names: std::collections::BTreeSet<_> = NAMES.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), NAMES.len());
        let chars: std::collections::BTreeSet<_> = CHARACTERS.iter().flat_map(|(a, b, _)| [a, b]).collect();
        assert_eq!(chars.len(), 2 * CHARACTERS.len());
        assert!(MODIFIERS.iter().all(|modifier| NAMES.iter().any(|(name, _)| name == modifier)));
    }

    proptest! {
        #[test]
        fn whatever_is_typed_nothing_stays_pressed(text in "[ -~\n\t]{0,40}") {
            let mut pressed = Vec::new();
            for change in typing(&text).unwrap() {
                if change.pressed {
                    prop_assert!(!pressed.contains(&change.code));
                    pressed.push(change.code);
                } else {
                    prop_assert_eq!(pressed.pop(), Some(change.code));
                }
            }
            prop_assert!(pressed.is_empty());
        }

        #[test]
        fn no_argument_panics(text in "\\PC{0,40}") {
            let _ = (chord(&text), typing(&text));
        }
    }
}
