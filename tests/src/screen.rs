//! Screens as tests see them: screenshots, and the text on them.
//!
//! Text is read exactly, glyph by glyph, in the VGA's 8×16 font that SeaBIOS's video BIOS loads. The font is not in this
//! repository: it is found in the video BIOS of the package seabios when a test runs.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Seek};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// The characters of code page 437, the VGA font's order.
const CODE_PAGE: &str = concat!(
    " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼",
    " !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~⌂",
    "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐",
    "└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■ ",
);
/// The font's second glyph, a face, by which it is found; the first, sixteen bytes before, is empty.
const FACE: Glyph = [0, 0, 0x7e, 0x81, 0xa5, 0x81, 0x81, 0xbd, 0x99, 0x81, 0x81, 0x7e, 0, 0, 0, 0];

/// Eight pixels a row, the leftmost in the highest bit.
pub type Glyph = [u8; 16];

/// A colour: red, green, blue.
pub type Colour = [u8; 3];

/// A picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    pixels: Vec<Colour>,
}

impl Image {
    /// A picture of one colour.
    pub fn new(width: usize, height: usize, colour: Colour) -> Self {
        Self { width, height, pixels: vec![colour; width * height] }
    }

    /// Reads a PNG file; transparency is dropped.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("could not open {}", path.display()))?;
        Self::decode(BufReader::new(file)).with_context(|| format!("could not read {}", path.display()))
    }

    /// The same from the file's bytes.
    pub fn decode(file: impl BufRead + Seek) -> Result<Self> {
        let mut decoder = png::Decoder::new(file);
        decoder.set_transformations(png::Transformations::normalize_to_color8());
        let mut reader = decoder.read_info().context("this is no PNG")?;
        let size = reader.output_buffer_size().context("the picture is too large")?;
        let mut bytes = vec![0; size];
        let info = reader.next_frame(&mut bytes).context("the picture is damaged")?;
        let pixel: fn(&[u8]) -> Colour = match info.color_type.samples() {
            1 | 2 => |grey| [grey[0]; 3],
            _ => |rgb| [rgb[0], rgb[1], rgb[2]],
        };
        let pixels = bytes[..info.buffer_size()].chunks_exact(info.color_type.samples()).map(pixel).collect();
        Ok(Self { width: info.width as usize, height: info.height as usize, pixels })
    }

    /// The pixel's colour. It must lie within the picture.
    pub fn at(&self, x: usize, y: usize) -> Colour {
        assert!(x < self.width && y < self.height, "({x}, {y}) is outside of {}×{}", self.width, self.height);
        self.pixels[y * self.width + x]
    }

    /// Changes a pixel's colour.
    pub fn set(&mut self, x: usize, y: usize, colour: Colour) {
        assert!(x < self.width && y < self.height, "({x}, {y}) is outside of {}×{}", self.width, self.height);
        self.pixels[y * self.width + x] = colour;
    }

    /// How many different colours the part has.
    pub fn colours(&self, x: Range<usize>, y: Range<usize>) -> usize {
        let mut seen: Vec<Colour> = y.flat_map(|y| x.clone().map(move |x| self.at(x, y))).collect();
        seen.sort_unstable();
        seen.dedup();
        seen.len()
    }

    /// Where this picture shows the other one, pixel by pixel; its top left corner there. A picture of one colour is found
    /// nowhere.
    pub fn find(&self, part: &Image) -> Option<(usize, usize)> {
        let (paper, rest) = part.pixels.split_first()?;
        // One pixel that stands out tells most wrong places at once.
        let mark = 1 + rest.iter().position(|pixel| pixel != paper)?;
        let (x, y) = (mark % part.width, mark / part.width);
        for top in 0..(self.height + 1).saturating_sub(part.height) {
            for left in 0..(self.width + 1).saturating_sub(part.width) {
                let same = |y| self.row(left, top + y, part.width) == part.row(0, y, part.width);
                if self.at(left + x, top + y) == part.at(x, y) && (0..part.height).all(same) {
                    return Some((left, top));
                }
            }
        }
        None
    }

    fn row(&self, left: usize, y: usize, width: usize) -> &[Colour] {
        let start = y * self.width + left;
        &self.pixels[start..start + width]
    }

    /// The part of it with this corner and size, which must lie within the picture.
    pub fn part(&self, left: usize, top: usize, width: usize, height: usize) -> Image {
        let pixels = (top..top + height).flat_map(|y| self.row(left, y, width)).copied().collect();
        Image { width, height, pixels }
    }

    /// How many pixels differ from the other picture's; all of them when the sizes differ.
    pub fn differences(&self, other: &Image) -> usize {
        if (self.width, self.height) != (other.width, other.height) {
            return self.pixels.len().max(other.pixels.len());
        }
        self.pixels.iter().zip(&other.pixels).filter(|(mine, theirs)| mine != theirs).count()
    }
}

/// The VGA's 8×16 font.
#[derive(Debug)]
pub struct Font {
    glyphs: Vec<Glyph>,
    characters: HashMap<Glyph, char>,
}

impl Font {
    /// Takes the font from the video BIOS of the package seabios.
    pub fn vga() -> Result<Self> {
        let path = Path::new("/usr/share/seabios/vgabios-stdvga.bin");
        let rom = fs::read(path).with_context(|| {
            format!("could not read {}: install the package seabios, or run './dev setup'", path.display())
        })?;
        let face =
            rom.windows(FACE.len()).position(|bytes| bytes == FACE).context("the video BIOS has no 8×16 font")?;
        let start = face.checked_sub(FACE.len()).context("the video BIOS has no 8×16 font")?;
        let bytes = rom.get(start..start + 256 * FACE.len()).context("the video BIOS's font is cut off")?;
        let glyphs: Vec<Glyph> = bytes.as_chunks().0.to_vec();
        let mut characters = HashMap::new();
        // Printable ASCII first: some glyphs are there twice.
        let codes: Vec<(usize, char)> = CODE_PAGE.chars().enumerate().collect();
        ensure!(codes.len() == glyphs.len(), "the code page has {} characters", codes.len());
        for (code, character) in codes[0x20..0x7f].iter().chain(&codes) {
            characters.entry(glyphs[*code]).or_insert(*character);
        }
        Ok(Self { glyphs, characters })
    }

    /// Its glyphs, in the order of code page 437.
    pub fn glyphs(&self) -> &[Glyph] {
        &self.glyphs
    }

    /// The font as a PC Screen Font file, version 1 with 256 glyphs, for a Linux console (busybox's `loadfont`).
    pub fn psf(&self) -> Vec<u8> {
        let mut file = vec![0x36, 0x04, 0, 16];
        file.extend(self.glyphs.iter().flatten());
        file
    }

    /// Reads a screen of text: cells of 8×16 pixels from the corner on, or 9×16 when it is 720 wide, as VGA text modes
    /// are. Rows end without their blanks. What is no glyph of two colours reads as '\u{FFFD}'.
    pub fn read(&self, screen: &Image) -> String {
        let cell = if screen.width == 720 { 9 } else { 8 };
        let rows = (0..screen.height / 16).map(|row| {
            let line: String =
                (0..screen.width / cell).map(|column| self.character(screen, column * cell, row * 16)).collect();
            line.trim_end().to_owned()
        });
        rows.collect::<Vec<_>>().join("\n")
    }

    /// Finds the text anywhere in the picture, in its natural size and any two colours; its top left corner.
    pub fn find(&self, screen: &Image, text: &str) -> Option<(usize, usize)> {
        let codes: Vec<usize> = text.chars().map(|c| CODE_PAGE.chars().position(|d| c == d)).collect::<Option<_>>()?;
        let (width, height) = (codes.len() * 8, 16);
        let lit = |x: usize, y: usize| self.glyphs[codes[x / 8]][y] & (0x80 >> (x % 8)) != 0;
        let dots: Vec<(usize, usize, bool)> =
            (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).map(|(x, y)| (x, y, lit(x, y))).collect();
        let ink = dots.iter().find(|dot| dot.2)?;
        let paper = dots.iter().find(|dot| !dot.2)?;
        for top in 0..(screen.height + 1).saturating_sub(height) {
            for left in 0..(screen.width + 1).saturating_sub(width) {
                let (ink, paper) = (screen.at(left + ink.0, top + ink.1), screen.at(left + paper.0, top + paper.1));
                let same =
                    |&(x, y, lit): &(usize, usize, bool)| screen.at(left + x, top + y) == if lit { ink } else { paper };
                if ink != paper && dots.iter().all(same) {
                    return Some((left, top));
                }
            }
        }
        None
    }

    fn character(&self, screen: &Image, left: usize, top: usize) -> char {
        let paper = screen.at(left, top);
        let mut ink = None;
        let mut glyph: Glyph = [0; 16];
        for (y, row) in glyph.iter_mut().enumerate() {
            for x in 0..8 {
                let colour = screen.at(left + x, top + y);
                if colour == paper {
                    continue;
                }
                if *ink.get_or_insert(colour) != colour {
                    return '\u{FFFD}';
                }
                *row |= 0x80 >> x;
            }
        }
        // The corner may be the ink's.
        let inverse = glyph.map(|row| !row);
        *self.characters.get(&glyph).or_else(|| self.characters.get(&inverse)).unwrap_or(&'\u{FFFD}')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(font: &Font, text: &str, left: usize, top: usize, screen: &mut Image) {
        for (index, character) in text.chars().enumerate() {
            let code = CODE_PAGE.chars().position(|c| c == character).unwrap();
            for y in 0..16 {
                for x in (0..8).filter(|x| font.glyphs[code][y] & (0x80 >> x) != 0) {
                    screen.set(left + index * 8 + x, top + y, [170, 170, 170]);
                }
            }
        }
    }

    #[test]
    fn text_reads_back_as_it_was_drawn() {
        let font = Font::vga().unwrap();
        let mut screen = Image::new(640, 48, [0, 0, 0]);
        draw(&font, "grub> echo ┌─┐ {Wm@}", 0, 0, &mut screen);
        draw(&font, "below", 16, 32, &mut screen);
        assert_eq!(font.read(&screen), "grub> echo ┌─┐ {Wm@}\n\n  below");
    }

    #[test]
    fn a_word_is_found_at_any_place_and_nowhere_else() {
        let font = Font::vga().unwrap();
        let mut screen = Image::new(200, 100, [20, 30, 40]);
        draw(&font, "hello", 37, 51, &mut screen);
        assert_eq!(font.find(&screen, "hello"), Some((37, 51)));
        assert_eq!(font.find(&screen, "hallo"), None);
        assert_eq!(font.find(&Image::new(10, 10, [0; 3]), "hello"), None);
    }

    #[test]
    fn a_picture_is_found_in_another_where_every_pixel_agrees() {
        let mut part = Image::new(3, 2, [0, 0, 0]);
        part.set(1, 0, [9, 9, 9]);
        part.set(2, 1, [7, 7, 7]);
        let mut whole = Image::new(10, 10, [0, 0, 0]);
        whole.set(2, 2, [9, 9, 9]);
        assert_eq!(whole.find(&part), None);
        whole.set(6, 5, [9, 9, 9]);
        whole.set(7, 6, [7, 7, 7]);
        assert_eq!(whole.find(&part), Some((5, 5)));
        assert_eq!(whole.part(5, 5, 3, 2), part);
        assert_eq!(whole.find(&Image::new(3, 2, [0, 0, 0])), None);
    }

    #[test]
    fn a_cell_with_three_colours_is_no_character() {
        let font = Font::vga().unwrap();
        let mut screen = Image::new(8, 16, [0, 0, 0]);
        screen.set(1, 1, [255, 0, 0]);
        screen.set(2, 2, [0, 255, 0]);
        assert_eq!(font.read(&screen), "\u{FFFD}");
    }
}
