//! Takes out of a guest's output what would grow without bound in the terminal emulator and shows nothing: strings to the
//! terminal itself (ECMA-48 §8.3.89, 8.3.27: OSC, DCS and their like), of which it keeps all until they end, and
//! characters without a width, which pile up in one cell.

use unicode_width::UnicodeWidthChar;

const BEL: char = '\x07';
const CAN: char = '\x18';
const SUB: char = '\x1a';
const ESC: char = '\x1b';
/// The longest beginning of a character in UTF-8, bytes.
const MAX_PARTIAL: usize = 3;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    /// After an ESC, which is kept back until it is known what it begins.
    Escape,
    /// In a string.
    String,
    /// After an ESC in a string: its end, or another sequence's beginning.
    StringEscape,
}

/// The filter; keeps where it is between two pieces of output.
#[derive(Debug, Default)]
pub struct Filter {
    state: State,
    /// The beginning of a character whose rest is still to come.
    partial: Vec<u8>,
}

impl Filter {
    /// What of `bytes` is for the emulator.
    pub fn pass(&mut self, bytes: &[u8]) -> String {
        let mut whole = std::mem::take(&mut self.partial);
        whole.extend_from_slice(bytes);
        let mut out = String::with_capacity(whole.len());
        let mut rest = whole.len();
        for chunk in whole.utf8_chunks() {
            rest -= chunk.valid().len() + chunk.invalid().len();
            for c in chunk.valid().chars() {
                self.take(c, &mut out);
            }
            if chunk.invalid().is_empty() {
                continue;
            }
            if rest == 0 && is_partial(chunk.invalid()) {
                self.partial = chunk.invalid().to_vec();
            } else {
                self.take(char::REPLACEMENT_CHARACTER, &mut out);
            }
        }
        out
    }

    fn take(&mut self, c: char, out: &mut String) {
        self.state = match (self.state, c) {
            (State::Text | State::Escape, ESC) => State::Escape,
            (State::Text, _) => {
                // Control characters have no width either: `None`.
                if c.width() != Some(0) {
                    out.push(c);
                }
                State::Text
            }
            (State::Escape | State::StringEscape, 'P' | 'X' | ']' | '^' | '_') => State::String,
            (State::String | State::StringEscape, ESC) => State::StringEscape,
            (State::String, BEL | CAN | SUB) | (State::StringEscape, '\\') => State::Text,
            (State::String, _) => State::String,
            (State::Escape | State::StringEscape, _) => {
                out.push(ESC);
                out.push(c);
                State::Text
            }
        };
    }
}

/// Whether these bytes, which are no character, may become one.
fn is_partial(bytes: &[u8]) -> bool {
    let wanted = match bytes.first() {
        Some(0xc2..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xf4) => 4,
        _ => 0,
    };
    bytes.len() < wanted && bytes.len() <= MAX_PARTIAL
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(pieces: &[&[u8]]) -> String {
        let mut filter = Filter::default();
        pieces.iter().map(|piece| filter.pass(piece)).collect()
    }

    #[test]
    fn text_controls_and_sequences_pass() {
        let text = "a\tb\r\n\x1b[1;31mred\x1b[m\x1b(0q\x1b(B\x1bM \u{2500}\u{6f22}";
        assert_eq!(filtered(&[text.as_bytes()]), text);
    }

    #[test]
    fn strings_to_the_terminal_are_dropped_however_they_end() {
        for end in ["\x07", "\x1b\\", "\x18", "\x1a"] {
            for begin in ["\x1b]0;", "\x1bP", "\x1bX", "\x1b^", "\x1b_"] {
                assert_eq!(filtered(&[format!("a{begin}title{end}b").as_bytes()]), "ab");
            }
        }
        assert_eq!(filtered(&[b"a\x1b]0;title\x1b[mb"]), "a\x1b[mb");
        assert_eq!(filtered(&[b"a\x1b]0;one\x1b]0;two\x07b"]), "ab");
    }

    #[test]
    fn an_endless_string_keeps_nothing() {
        let mut filter = Filter::default();
        filter.pass(b"\x1b]0;");
        for _ in 0..1000 {
            assert_eq!(filter.pass(&[b'x'; 4096]), "");
        }
        assert!(filter.partial.is_empty());
    }

    #[test]
    fn characters_without_a_width_are_dropped() {
        assert_eq!(filtered(&["e\u{301}\u{301}\u{200b}x".as_bytes()]), "ex");
    }

    #[test]
    fn what_is_cut_in_two_is_put_together() {
        let text = "a\u{2500}\x1b[1mb\u{1f600}\x1b]0;t\x07c";
        let bytes = text.as_bytes();
        for at in 0..bytes.len() {
            assert_eq!(filtered(&[&bytes[..at], &bytes[at..]]), "a\u{2500}\x1b[1mb\u{1f600}c", "cut at {at}");
        }
    }

    #[test]
    fn what_is_no_character_is_one_replacement() {
        assert_eq!(filtered(&[b"a\xffb", b"\xe2\x94", b"x"]), "a\u{fffd}b\u{fffd}x");
        assert_eq!(filtered(&[b"\xf0\x9f"]), "");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_in_any_pieces_give_the_same(bytes: Vec<u8>, cut in 0usize..64) {
            let at = cut.min(bytes.len());
            proptest::prop_assert_eq!(filtered(&[&bytes]), filtered(&[&bytes[..at], &bytes[at..]]));
        }
    }
}
