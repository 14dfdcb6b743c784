//! Names and characters of keys, by evdev code (Linux's input-event-codes.h), and PS/2 scan codes of set 1.

/// Left and right shift.
pub const SHIFT: [u16; 2] = [42, 54];
/// Backspace and the two enter keys.
pub const BACKSPACE: u16 = 14;
/// Enter, and enter on the number pad.
pub const ENTER: [u16; 2] = [28, 96];
/// First of the codes that are buttons of a pointer: left, right, middle, side, extra.
pub const BUTTON_LEFT: u16 = 0x110;

/// A US keyboard from code 2 on, without and with shift; NUL where a key has no character.
const PLAIN: &str = "1234567890-=\0\0qwertyuiop[]\0\0asdfghjkl;'`\0\\zxcvbnm,./\0*\0 ";
const SHIFTED: &str = "!@#$%^&*()_+\0\0QWERTYUIOP{}\0\0ASDFGHJKL:\"~\0|ZXCVBNM<>?\0*\0 ";
/// The number pad from code 71 on.
const PAD: &str = "789-456+1230.";

/// The character a key types.
pub fn character(code: u16, shift: bool) -> Option<char> {
    let table = if shift { SHIFTED } else { PLAIN };
    let typed = match code {
        2..=57 => table.as_bytes().get(usize::from(code) - 2),
        71..=83 => PAD.as_bytes().get(usize::from(code) - 71),
        98 => Some(&b'/'),
        _ => None,
    };
    typed.filter(|&&byte| byte != 0).map(|&byte| char::from(byte))
}

/// What a key is called, if it types no character of its own.
pub fn name(code: u16) -> Option<&'static str> {
    const FUNCTION: [&str; 10] = ["F1", "F2", "F3", "F4", "F5", "F6", "F7", "F8", "F9", "F10"];
    Some(match code {
        1 => "Esc",
        14 => "Backspace",
        15 => "Tab",
        28 => "Enter",
        29 => "Left Ctrl",
        42 => "Left Shift",
        54 => "Right Shift",
        56 => "Left Alt",
        57 => "Space",
        58 => "Caps Lock",
        59..=68 => FUNCTION[usize::from(code) - 59],
        69 => "Num Lock",
        70 => "Scroll Lock",
        86 => "<>",
        87 => "F11",
        88 => "F12",
        96 => "Pad Enter",
        97 => "Right Ctrl",
        99 => "Print",
        100 => "Right Alt",
        102 => "Home",
        103 => "Up",
        104 => "Page Up",
        105 => "Left",
        106 => "Right",
        107 => "End",
        108 => "Down",
        109 => "Page Down",
        110 => "Insert",
        111 => "Delete",
        113 => "Mute",
        114 => "Volume Down",
        115 => "Volume Up",
        116 => "Power",
        119 => "Pause",
        125 => "Left Meta",
        126 => "Right Meta",
        127 => "Menu",
        _ => return None,
    })
}

/// The evdev code of a set 1 scan code without its release bit; `extended` if 0xE0 came before.
pub fn from_scan_code(code: u8, extended: bool) -> Option<u16> {
    let code = u16::from(code);
    if !extended {
        return (1..=88).contains(&code).then_some(code);
    }
    Some(match code {
        0x1c => 96,
        0x1d => 97,
        0x35 => 98,
        0x37 => 99,
        0x38 => 100,
        0x47 => 102,
        0x48 => 103,
        0x49 => 104,
        0x4b => 105,
        0x4d => 106,
        0x4f => 107,
        0x50 => 108,
        0x51 => 109,
        0x52 => 110,
        0x53 => 111,
        0x5b => 125,
        0x5c => 126,
        0x5d => 127,
        _ => return None,
    })
}
