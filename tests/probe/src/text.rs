//! A line of text in a fixed buffer: what tests return as details, and what the demo draws.

use core::fmt::{self, Write};

/// Up to 240 bytes; what does not fit is cut off.
#[derive(Clone, Copy)]
pub struct Text {
    bytes: [u8; 240],
    length: usize,
}

impl Text {
    /// An empty line.
    pub const fn new() -> Text {
        Text { bytes: [0; 240], length: 0 }
    }

    /// A line with formatted content.
    pub fn of(arguments: fmt::Arguments) -> Text {
        let mut text = Text::new();
        // Cutting off is not an error.
        let _ = text.write_fmt(arguments);
        text
    }

    /// The content.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.length]).unwrap_or("")
    }

    /// Drops the last character.
    pub fn pop(&mut self) {
        self.length = self.as_str().char_indices().last().map_or(0, |(start, _)| start);
    }

    /// Drops the first `count` bytes, which must be a character boundary.
    pub fn drop_front(&mut self, count: usize) {
        let count = count.min(self.length);
        self.bytes.copy_within(count..self.length, 0);
        self.length -= count;
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if self.length + character.len_utf8() > self.bytes.len() {
                break;
            }
            self.length += character.encode_utf8(&mut self.bytes[self.length..]).len();
        }
        Ok(())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Formats into a [`Text`].
#[macro_export]
macro_rules! text {
    ($($argument:tt)*) => { $crate::text::Text::of(format_args!($($argument)*)) };
}
