//! Drawing into a picture in memory: fills, gradients, discs, text; and lists of rectangles that changed.

use super::font;
use crate::dma::Dma;
use crate::drivers::gpu::Rect;

/// 0x00RRGGBB.
pub type Colour = u32;

/// Mixes two colours: `amount` of 255 parts of `b`.
pub fn mix(a: Colour, b: Colour, amount: u32) -> Colour {
    let channel = |shift: u32| {
        let (a, b) = (a >> shift & 255, b >> shift & 255);
        ((a * (255 - amount) + b * amount + 127) / 255) << shift
    };
    channel(16) | channel(8) | channel(0)
}

/// A picture.
#[derive(Clone, Copy)]
pub struct Canvas {
    memory: Dma,
    /// Pixels.
    pub width: i32,
    /// Pixels.
    pub height: i32,
}

impl Canvas {
    /// A black picture.
    pub fn new(width: i32, height: i32) -> Canvas {
        Canvas { memory: Dma::new((width * height * 4) as usize), width, height }
    }

    /// Its pixels, 32 bits each, line by line.
    pub fn memory(&self) -> &Dma {
        &self.memory
    }

    fn row(&self, y: i32, x: i32, width: i32) -> &mut [u32] {
        let start = (y * self.width + x) as usize;
        &mut self.memory.words_mut()[start..start + width as usize]
    }

    /// The part of a rectangle that is inside.
    pub fn clip(&self, area: Area) -> Area {
        area.cut(Area::new(0, 0, self.width, self.height))
    }

    /// Fills a rectangle.
    pub fn fill(&self, area: Area, colour: Colour) {
        let area = self.clip(area);
        (area.top..area.bottom).for_each(|y| self.row(y, area.left, area.width()).fill(colour));
    }

    /// Lays a colour over a rectangle, `amount` of 255 parts.
    pub fn veil(&self, area: Area, colour: Colour, amount: u32) {
        let area = self.clip(area);
        for y in area.top..area.bottom {
            self.row(y, area.left, area.width()).iter_mut().for_each(|pixel| *pixel = mix(*pixel, colour, amount));
        }
    }

    /// Fills a rectangle from top to bottom, with a little noise so that no steps show.
    pub fn gradient(&self, area: Area, top: Colour, bottom: Colour) {
        let inside = self.clip(area);
        let height = area.height().max(1) as u32;
        for y in inside.top..inside.bottom {
            let along = (y - area.top) as u32 * 255 * 256 / height;
            for (index, pixel) in self.row(y, inside.left, inside.width()).iter_mut().enumerate() {
                let noise =
                    (index as u32).wrapping_mul(0x9e37_79b1).wrapping_add((y as u32).wrapping_mul(0x85eb_ca77)) >> 24;
                *pixel = mix(top, bottom, ((along + noise) / 256).min(255));
            }
        }
    }

    /// Lays a colour over one pixel.
    pub fn blend(&self, x: i32, y: i32, colour: Colour, amount: u32) {
        if (0..self.width).contains(&x) && (0..self.height).contains(&y) {
            let pixel = &mut self.row(y, x, 1)[0];
            *pixel = mix(*pixel, colour, amount.min(255));
        }
    }

    /// A disc with a soft edge, inside `clip`; `shade(x, y)` gives the colour at an offset from the centre.
    pub fn disc(
        &self,
        clip: Area,
        (cx, cy): (f32, f32),
        radius: f32,
        opacity: f32,
        shade: impl Fn(f32, f32) -> Colour,
    ) {
        let reach = radius + 1.0;
        let area = self.clip(clip.cut(Area::around(cx, cy, reach)));
        for y in area.top..area.bottom {
            for (index, pixel) in self.row(y, area.left, area.width()).iter_mut().enumerate() {
                let (dx, dy) = ((area.left + index as i32) as f32 + 0.5 - cx, y as f32 + 0.5 - cy);
                let square = dx * dx + dy * dy;
                if square >= reach * reach {
                    continue;
                }
                let inner = (radius - 0.5).max(0.0);
                let edge = if square <= inner * inner { 1.0 } else { radius + 0.5 - super::maths::sqrt(square) };
                let amount = edge.clamp(0.0, 1.0) * opacity * 255.0;
                *pixel = mix(*pixel, shade(dx, dy), amount as u32);
            }
        }
    }

    /// A rectangle with round corners, laid over what is there.
    pub fn panel(&self, area: Area, radius: i32, colour: Colour, amount: u32) {
        let r = radius as f32;
        let inside = self.clip(area);
        for y in inside.top..inside.bottom {
            for x in inside.left..inside.right {
                let dx = (area.left + radius - x).max(x - (area.right - 1 - radius)).max(0) as f32;
                let dy = (area.top + radius - y).max(y - (area.bottom - 1 - radius)).max(0) as f32;
                let edge = if dx > 0.0 && dy > 0.0 { r + 0.5 - super::maths::sqrt(dx * dx + dy * dy) } else { 1.0 };
                self.blend(x, y, colour, (edge.clamp(0.0, 1.0) * amount as f32) as u32);
            }
        }
    }

    /// Draws a line of text inside `clip` and returns where it ends. Scale 1 has capitals of 12 pixels.
    pub fn text(&self, clip: Area, x: i32, y: i32, scale: f32, colour: Colour, text: &str) -> i32 {
        let advance = (font::ADVANCE as f32 * scale) as i32;
        let pen = 0.55 + 1.05 * scale;
        let mut left = x;
        for character in text.chars() {
            if left >= clip.right {
                break;
            }
            font::draw(character, scale, pen, |dx, dy, coverage| {
                let (px, py) = (left + dx as i32, y + dy as i32);
                if clip.contains(px, py) {
                    self.blend(px, py, colour, u32::from(coverage));
                }
            });
            left += advance;
        }
        left
    }

    /// Copies a rectangle from a picture of the same size.
    pub fn restore(&self, from: &Canvas, area: Area) {
        let area = self.clip(area);
        for y in area.top..area.bottom {
            self.row(y, area.left, area.width()).copy_from_slice(from.row(y, area.left, area.width()));
        }
    }
}

/// A rectangle by its edges; right and bottom are outside.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// First column.
    pub left: i32,
    /// First line.
    pub top: i32,
    /// First column that is outside.
    pub right: i32,
    /// First line that is outside.
    pub bottom: i32,
}

impl Area {
    /// Nothing.
    pub const EMPTY: Area = Area { left: 0, top: 0, right: 0, bottom: 0 };

    /// By corner and size.
    pub fn new(left: i32, top: i32, width: i32, height: i32) -> Area {
        Area { left, top, right: left + width, bottom: top + height }
    }

    /// The square around a point.
    pub fn around(x: f32, y: f32, reach: f32) -> Area {
        // Coordinates can be negative, where `as` rounds up: one more pixel all around.
        let area = |value: f32| value as i32;
        Area {
            left: area(x - reach) - 1,
            top: area(y - reach) - 1,
            right: area(x + reach) + 2,
            bottom: area(y + reach) + 2,
        }
    }

    /// Width.
    pub fn width(&self) -> i32 {
        self.right - self.left
    }

    /// Height.
    pub fn height(&self) -> i32 {
        self.bottom - self.top
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.right <= self.left || self.bottom <= self.top
    }

    /// Whether a pixel is in it.
    pub fn contains(&self, x: i32, y: i32) -> bool {
        (self.left..self.right).contains(&x) && (self.top..self.bottom).contains(&y)
    }

    /// The common part, or [`Area::EMPTY`].
    pub fn cut(self, other: Area) -> Area {
        let common = Area {
            left: self.left.max(other.left),
            top: self.top.max(other.top),
            right: self.right.min(other.right),
            bottom: self.bottom.min(other.bottom),
        };
        if common.is_empty() { Area::EMPTY } else { common }
    }

    /// The least rectangle around both.
    pub fn union(self, other: Area) -> Area {
        match (self.is_empty(), other.is_empty()) {
            (true, _) => other,
            (_, true) => self,
            _ => Area {
                left: self.left.min(other.left),
                top: self.top.min(other.top),
                right: self.right.max(other.right),
                bottom: self.bottom.max(other.bottom),
            },
        }
    }

    /// Smaller, or larger, by so much on each side.
    pub fn inset(self, by: i32) -> Area {
        Area { left: self.left + by, top: self.top + by, right: self.right - by, bottom: self.bottom - by }
    }

    /// For the GPU; the area must be inside the picture.
    pub fn rect(&self) -> Rect {
        Rect { x: self.left as u32, y: self.top as u32, width: self.width() as u32, height: self.height() as u32 }
    }
}

/// Rectangles to show again; those that touch are joined.
pub struct Damage {
    areas: [Area; Damage::MOST],
    count: usize,
}

impl Damage {
    const MOST: usize = 12;

    /// None.
    pub const fn new() -> Damage {
        Damage { areas: [Area::EMPTY; Damage::MOST], count: 0 }
    }

    /// Adds a rectangle.
    pub fn add(&mut self, area: Area) {
        if area.is_empty() {
            return;
        }
        let mut area = area;
        // Joining may make it touch others: look again until it does not.
        while let Some(index) = self.areas[..self.count].iter().position(|other| !other.cut(area).is_empty()) {
            area = area.union(self.areas[index]);
            self.count -= 1;
            self.areas[index] = self.areas[self.count];
        }
        if self.count == Damage::MOST {
            area = self.areas[..self.count].iter().fold(area, |all, other| all.union(*other));
            self.count = 0;
        }
        self.areas[self.count] = area;
        self.count += 1;
    }

    /// All of them, and none are left.
    pub fn take(&mut self) -> impl Iterator<Item = Area> + Clone + use<> {
        let areas = self.areas;
        let count = core::mem::take(&mut self.count);
        (0..count).map(move |index| areas[index])
    }
}
