//! What a key sends to a terminal's other end: the sequences of xterm ("PC-style function keys" in its ctlseqs).

use alacritty_terminal::term::TermMode;
use winit::keyboard::{Key, ModifiersState, NamedKey};

/// The bytes that a key with these modifiers sends in this mode of the terminal; none if it sends nothing. `latin` is what
/// the key types on a US keyboard, for layouts whose letters have no control characters.
pub fn encode(key: &Key, latin: Option<char>, held: ModifiersState, mode: TermMode) -> Vec<u8> {
    let mut bytes = match key {
        Key::Named(named) => return function(*named, held, mode),
        Key::Character(text) if held.control_key() => {
            let typed = text.chars().next().filter(char::is_ascii).or(latin);
            match typed.and_then(control) {
                Some(byte) => vec![byte],
                None => return Vec::new(),
            }
        }
        Key::Character(text) => text.as_bytes().to_vec(),
        Key::Unidentified(_) | Key::Dead(_) => return Vec::new(),
    };
    if held.alt_key() {
        bytes.insert(0, 0x1b);
    }
    bytes
}

/// The control character of a letter or sign, as Ctrl with it types.
fn control(typed: char) -> Option<u8> {
    match typed {
        'a'..='z' | 'A'..='Z' | '@' | '[' | '\\' | ']' | '^' | '_' => Some(typed as u8 & 0x1f),
        ' ' | '2' | '`' => Some(0),
        '3'..='7' => Some(typed as u8 - b'3' + 0x1b),
        '8' | '?' => Some(0x7f),
        '/' | '-' => Some(0x1f),
        _ => None,
    }
}

/// A key that types no character.
fn function(key: NamedKey, held: ModifiersState, mode: TermMode) -> Vec<u8> {
    let alt = |bytes: &[u8]| if held.alt_key() { [b"\x1b", bytes].concat() } else { bytes.to_vec() };
    match key {
        NamedKey::Enter if mode.contains(TermMode::LINE_FEED_NEW_LINE) => alt(b"\r\n"),
        NamedKey::Enter => alt(b"\r"),
        NamedKey::Tab if held.shift_key() => b"\x1b[Z".to_vec(),
        NamedKey::Tab => alt(b"\t"),
        NamedKey::Backspace if held.control_key() => alt(b"\x08"),
        NamedKey::Backspace => alt(b"\x7f"),
        NamedKey::Escape => alt(b"\x1b"),
        NamedKey::Space if held.control_key() => alt(b"\0"),
        NamedKey::Space => alt(b" "),
        _ => sequence(key, held, mode),
    }
}

fn sequence(key: NamedKey, held: ModifiersState, mode: TermMode) -> Vec<u8> {
    let bit = |is: bool, value: u8| if is { value } else { 0 };
    let modifier =
        1 + bit(held.shift_key(), 1) + bit(held.alt_key(), 2) + bit(held.control_key(), 4) + bit(held.super_key(), 8);
    // Ends in a letter: cursor keys and the first function keys.
    let letter = |letter: char, plain: &str| match modifier {
        1 => format!("\x1b{plain}{letter}"),
        _ => format!("\x1b[1;{modifier}{letter}"),
    };
    let cursor = |of: char| letter(of, if mode.contains(TermMode::APP_CURSOR) { "O" } else { "[" });
    let number = |number: u8| match modifier {
        1 => format!("\x1b[{number}~"),
        _ => format!("\x1b[{number};{modifier}~"),
    };
    let text = match key {
        NamedKey::ArrowUp => cursor('A'),
        NamedKey::ArrowDown => cursor('B'),
        NamedKey::ArrowRight => cursor('C'),
        NamedKey::ArrowLeft => cursor('D'),
        NamedKey::Home => cursor('H'),
        NamedKey::End => cursor('F'),
        NamedKey::F1 => letter('P', "O"),
        NamedKey::F2 => letter('Q', "O"),
        NamedKey::F3 => letter('R', "O"),
        NamedKey::F4 => letter('S', "O"),
        NamedKey::Insert => number(2),
        NamedKey::Delete => number(3),
        NamedKey::PageUp => number(5),
        NamedKey::PageDown => number(6),
        NamedKey::F5 => number(15),
        NamedKey::F6 => number(17),
        NamedKey::F7 => number(18),
        NamedKey::F8 => number(19),
        NamedKey::F9 => number(20),
        NamedKey::F10 => number(21),
        NamedKey::F11 => number(23),
        NamedKey::F12 => number(24),
        _ => return Vec::new(),
    };
    text.into_bytes()
}

/// A text from the clipboard as it is typed: its lines end as the Enter key does. A guest that tells what is pasted from what
/// is typed (mode 2004) gets it in its frame, which the text itself cannot leave: control characters are dropped there.
pub fn paste(text: &str, mode: TermMode) -> Vec<u8> {
    let lines = text.replace("\r\n", "\r").replace('\n', "\r");
    if !mode.contains(TermMode::BRACKETED_PASTE) {
        return lines.into_bytes();
    }
    let text: String = lines.chars().filter(|&c| !c.is_control() || c == '\r' || c == '\t').collect();
    format!("\x1b[200~{text}\x1b[201~").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: ModifiersState = ModifiersState::empty();
    const CTRL: ModifiersState = ModifiersState::CONTROL;
    const SHIFT: ModifiersState = ModifiersState::SHIFT;
    const ALT: ModifiersState = ModifiersState::ALT;

    fn typed(text: &str, held: ModifiersState) -> String {
        let bytes = encode(&Key::Character(text.into()), None, held, TermMode::NONE);
        String::from_utf8(bytes).unwrap()
    }

    fn named(key: NamedKey, held: ModifiersState, mode: TermMode) -> String {
        String::from_utf8(encode(&Key::Named(key), None, held, mode)).unwrap()
    }

    #[test]
    fn characters_are_utf_8_and_alt_puts_escape_before_them() {
        assert_eq!((typed("a", NONE), typed("ö", SHIFT)), ("a".into(), "ö".into()));
        assert_eq!((typed("x", ALT), typed("x", ALT | CTRL)), ("\x1bx".into(), "\x1b\x18".into()));
    }

    #[test]
    fn every_control_character_has_a_key() {
        let keys = "@abcdefghijklmnopqrstuvwxyz[\\]^_?";
        let bytes: Vec<u8> = keys.chars().flat_map(|c| typed(&c.to_string(), CTRL).into_bytes()).collect();
        assert_eq!(bytes, (0..32).chain([0x7f]).collect::<Vec<u8>>());
        assert_eq!(typed("C", CTRL | SHIFT), "\x03");
        assert_eq!(typed("2345678/", CTRL).len(), 1);
        assert_eq!(typed("ä", CTRL), "");
        let greek = encode(&Key::Character("ψ".into()), Some('c'), CTRL, TermMode::NONE);
        assert_eq!(greek, [3]);
    }

    #[test]
    fn cursor_keys_follow_the_guests_mode() {
        assert_eq!(named(NamedKey::ArrowUp, NONE, TermMode::NONE), "\x1b[A");
        assert_eq!(named(NamedKey::ArrowUp, NONE, TermMode::APP_CURSOR), "\x1bOA");
        assert_eq!(named(NamedKey::ArrowLeft, CTRL, TermMode::APP_CURSOR), "\x1b[1;5D");
        assert_eq!(named(NamedKey::Home, SHIFT | ALT, TermMode::NONE), "\x1b[1;4H");
    }

    #[test]
    fn function_and_editing_keys_are_xterms() {
        use NamedKey as K;
        let plain = [
            (K::F1, "\x1bOP"),
            (K::F4, "\x1bOS"),
            (K::F5, "\x1b[15~"),
            (K::F10, "\x1b[21~"),
            (K::F11, "\x1b[23~"),
            (K::F12, "\x1b[24~"),
            (K::Insert, "\x1b[2~"),
            (K::Delete, "\x1b[3~"),
            (K::PageUp, "\x1b[5~"),
            (K::PageDown, "\x1b[6~"),
            (K::Enter, "\r"),
            (K::Backspace, "\x7f"),
            (K::Escape, "\x1b"),
            (K::Tab, "\t"),
            (K::Shift, ""),
        ];
        for (key, expected) in plain {
            assert_eq!(named(key, NONE, TermMode::NONE), expected, "{key:?}");
        }
        assert_eq!(named(K::F1, CTRL, TermMode::NONE), "\x1b[1;5P");
        assert_eq!(named(K::Delete, SHIFT, TermMode::NONE), "\x1b[3;2~");
        assert_eq!(named(K::Tab, SHIFT, TermMode::NONE), "\x1b[Z");
        assert_eq!(named(K::Enter, NONE, TermMode::LINE_FEED_NEW_LINE), "\r\n");
        assert_eq!(named(K::Space, CTRL, TermMode::NONE), "\0");
        assert_eq!(named(K::Backspace, ALT, TermMode::NONE), "\x1b\x7f");
    }

    #[test]
    fn a_pasted_text_ends_its_lines_as_enter_does_and_stays_in_its_frame() {
        assert_eq!(paste("a\nb\r\nc", TermMode::NONE), b"a\rb\rc");
        let evil = paste("ls\x1b[201~\n\x03rm", TermMode::BRACKETED_PASTE);
        assert_eq!(evil, b"\x1b[200~ls[201~\rrm\x1b[201~");
    }
}
