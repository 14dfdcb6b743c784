//! The demo's picture: where everything is, what stands still, and the orange that does not.

use super::canvas::{Area, Canvas, Colour, mix};
use super::maths::{cos, sin, sqrt};

/// Colours of the whole demo.
pub mod palette {
    use super::Colour;
    /// Background, top and bottom.
    pub const NIGHT: [Colour; 2] = [0x2a1b3d, 0x0e1220];
    /// The stage's sky, top and bottom.
    pub const SKY: [Colour; 2] = [0x3b2a66, 0xf2955d];
    /// The stage's floor, far and near.
    pub const FLOOR: [Colour; 2] = [0x6b3550, 0x2b1b36];
    /// Text.
    pub const TEXT: Colour = 0xf4efe8;
    /// Text of less weight.
    pub const DIM: Colour = 0xa59fb5;
    /// The colour of the name.
    pub const ORANGE: Colour = 0xff9326;
    /// Good news.
    pub const GREEN: Colour = 0x63d68f;
    /// Bad news.
    pub const RED: Colour = 0xff6262;
    /// Test bars, at three quarters of full brightness.
    pub const BARS: [Colour; 7] = [0xc0c0c0, 0xc0c000, 0x00c0c0, 0x00c000, 0xc000c0, 0xc00000, 0x0000c0];
}

/// Where everything is.
#[derive(Clone, Copy)]
pub struct Layout {
    /// Pixels of a unit: text of scale 1 is for a screen of 1280x800.
    pub scale: f32,
    /// Title.
    pub header: Area,
    /// Where the orange is.
    pub stage: Area,
    /// Facts about the machine.
    pub machine: Area,
    /// Results of the self-test.
    pub results: Area,
    /// What is typed.
    pub keyboard: Area,
    /// Where the pointer is.
    pub pointer: Area,
}

impl Layout {
    /// Lays out a screen.
    pub fn new(width: i32, height: i32) -> Layout {
        // Whole scales keep text crisp; small screens keep scale 1 and lose room.
        let scale = (width / 1200).min(height / 700).max(1);
        let gap = (height / 36).clamp(10, 28 * scale);
        let header = Area::new(gap, gap, width - 2 * gap, 64 * scale);
        let column = (width * 35 / 100).min(460 * scale);
        let left = width - gap - column;
        let top = header.bottom + gap;
        let machine = Area::new(left, top, column, 160 * scale);
        let results = Area { left, top: machine.bottom + gap, right: width - gap, bottom: height - gap };
        let bottom = 132 * scale;
        let inner = left - 2 * gap;
        let keyboard = Area::new(gap, height - gap - bottom, (inner - gap) * 60 / 100, bottom);
        let pointer =
            Area { left: keyboard.right + gap, top: keyboard.top, right: left - gap, bottom: keyboard.bottom };
        let stage = Area { left: gap, top, right: left - gap, bottom: keyboard.top - gap };
        Layout { scale: scale as f32, header, stage, machine, results, keyboard, pointer }
    }

    /// A length for this scale.
    pub fn units(&self, length: i32) -> i32 {
        length * self.scale as i32
    }

    /// Height of the horizon above the stage's bottom.
    fn horizon(&self) -> i32 {
        self.stage.bottom - self.stage.height() * 30 / 100
    }
}

/// Paints all that stands still.
pub fn paint(canvas: &Canvas, layout: &Layout, subtitle: &str) {
    let whole = Area::new(0, 0, canvas.width, canvas.height);
    canvas.gradient(whole, palette::NIGHT[0], palette::NIGHT[1]);
    header(canvas, layout, subtitle);
    stage(canvas, layout);
    for (area, title) in [
        (layout.machine, "Machine"),
        (layout.results, "Self-test"),
        (layout.keyboard, "Keyboard"),
        (layout.pointer, "Pointer"),
    ] {
        canvas.panel(area, layout.units(10), 0xffffff, 20);
        canvas.panel(area.inset(1), layout.units(9), 0x0b0a14, 90);
        let inside = area.inset(layout.units(14));
        canvas.text(area, inside.left, inside.top - layout.units(4), layout.scale, palette::ORANGE, title);
    }
}

/// The name, beside a slice of orange.
fn header(canvas: &Canvas, layout: &Layout, subtitle: &str) {
    let area = layout.header;
    let radius = area.height() as f32 / 2.0;
    let centre = (area.left as f32 + radius, area.top as f32 + radius);
    slice(canvas, area, centre, radius);
    let left = area.left + area.height() + layout.units(20);
    canvas.text(area, left, area.top - layout.units(2), layout.scale * 2.25, palette::TEXT, "Orangery demo guest");
    canvas.text(area, left, area.bottom - layout.units(18), layout.scale, palette::DIM, subtitle);
}

/// A slice of an orange: peel, pith and eight segments.
fn slice(canvas: &Canvas, clip: Area, centre: (f32, f32), radius: f32) {
    const SEGMENTS: i32 = 8;
    canvas.disc(clip, centre, radius, 1.0, |_, _| palette::ORANGE);
    canvas.disc(clip, centre, radius * 0.88, 1.0, |_, _| 0xffe9c9);
    let inner = radius * 0.80;
    canvas.disc(clip, centre, inner, 1.0, |dx, dy| {
        // Distance to the nearest of the lines between segments.
        let gap = (0..SEGMENTS / 2).fold(f32::MAX, |least, line| {
            let turns = (line as f32 + 0.25) / SEGMENTS as f32;
            least.min((dx * sin(turns) - dy * cos(turns)).abs())
        });
        let pith = ((radius * 0.055 - gap) / (radius * 0.03)).clamp(0.0, 1.0);
        let depth = sqrt(dx * dx + dy * dy) / inner;
        mix(mix(0xffb648, 0xff8a1c, (depth * 255.0) as u32), 0xffe9c9, (pith * 255.0) as u32)
    });
}

/// Sky, sun, hills, floor, and a test card's bars.
fn stage(canvas: &Canvas, layout: &Layout) {
    let area = layout.stage;
    let horizon = layout.horizon();
    let sky = Area { bottom: horizon, ..area };
    canvas.gradient(sky, palette::SKY[0], palette::SKY[1]);
    // Stars above, at places that look accidental.
    for star in 0..60u32 {
        let place = star.wrapping_mul(0x9e37_79b1) ^ 0x5bd1_e995;
        let x = area.left + (place >> 8 & 0xffff) as i32 * area.width() / 65536;
        let y = area.top + (place >> 20) as i32 * sky.height() / 8192;
        canvas.blend(x, y, 0xffffff, 60 + (place & 127));
    }
    let sun = ((area.left + area.width() * 3 / 4) as f32, (horizon - layout.units(6)) as f32);
    let glow = area.height() as f32 * 0.42;
    for ring in 0..40 {
        canvas.disc(sky, sun, glow * (1.0 - ring as f32 * 0.018), 0.014, |_, _| 0xffd9a0);
    }
    canvas.disc(sky, sun, area.height() as f32 * 0.13, 1.0, |_, dy| {
        mix(0xfff1cf, 0xffc46b, (dy * 2.0).clamp(0.0, 255.0) as u32)
    });
    hills(canvas, sky, layout.scale);
    canvas.gradient(Area { top: horizon, ..area }, palette::FLOOR[0], palette::FLOOR[1]);
    bars(canvas, layout);
}

/// Two rows of hills in front of the sun.
fn hills(canvas: &Canvas, sky: Area, scale: f32) {
    for (colour, height, waves, shift) in [(0x8a4560, 0.20, 1.6, 0.15), (0x5d2f52, 0.12, 2.3, 0.62)] {
        for x in sky.left..sky.right {
            let along = (x - sky.left) as f32 / sky.width().max(1) as f32;
            let wave = 0.6 + 0.25 * sin(along * waves + shift) + 0.15 * sin(along * waves * 2.7 + shift * 3.0);
            let top = sky.bottom as f32 - wave * height * sky.height() as f32;
            let first = top as i32;
            canvas.blend(x, first, colour, (255.0 * (1.0 - (top - first as f32))) as u32);
            canvas.fill(Area { left: x, top: first + 1, right: x + 1, bottom: sky.bottom }, colour);
        }
    }
    // Mist where the hills meet the floor.
    let mist = (14.0 * scale) as i32;
    for line in 0..mist {
        let row = Area { top: sky.bottom - 1 - line, bottom: sky.bottom - line, ..sky };
        canvas.veil(row, 0xf2955d, (60 * (mist - line) / mist) as u32);
    }
}

/// Seven colour bars and a ramp of grey along the stage's lower edge.
fn bars(canvas: &Canvas, layout: &Layout) {
    let area = layout.stage;
    let height = layout.units(22);
    let edge = |part: i32, of: i32| area.left + area.width() * part / of;
    let top = area.bottom - height - layout.units(10);
    for (index, colour) in palette::BARS.into_iter().enumerate() {
        let index = index as i32;
        let bar = Area { left: edge(index, 7), top, right: edge(index + 1, 7), bottom: top + height };
        canvas.fill(bar, colour);
    }
    const STEPS: i32 = 32;
    for step in 0..STEPS {
        let grey = (step * 255 / (STEPS - 1)) as u32;
        let bar =
            Area { left: edge(step, STEPS), top: top + height, right: edge(step + 1, STEPS), bottom: area.bottom };
        canvas.fill(bar, grey << 16 | grey << 8 | grey);
    }
}

/// The orange and the two that circle it, at a moment.
pub struct Orange {
    layout: Layout,
    /// Frames since the beginning.
    frame: u32,
}

/// A ball: place, radius, colours of its lit and its dark side.
type Ball = ((f32, f32), f32, [Colour; 3]);

const ORANGE_PEEL: [Colour; 3] = [0xffd27a, 0xff8c1a, 0xb84a08];
const LIME_PEEL: [Colour; 3] = [0xe4f7a0, 0x8ecf3c, 0x3f7a1e];
const LEMON_PEEL: [Colour; 3] = [0xfff7b0, 0xf9d52f, 0xb08a10];
/// Frames of a bounce, and of a way across the stage and back.
const BOUNCE: u32 = 44;
const CROSSING: u32 = 520;
/// Frames of a turn of the small ones.
const ORBIT: u32 = 120;

impl Orange {
    /// As it is in a frame.
    pub fn at(layout: &Layout, frame: u32) -> Orange {
        Orange { layout: *layout, frame }
    }

    fn radius(&self) -> f32 {
        self.layout.stage.height() as f32 * 0.12
    }

    /// Centre of the orange, and how high it is above the floor, 0–1.
    fn place(&self) -> ((f32, f32), f32) {
        let stage = self.layout.stage;
        let radius = self.radius();
        let room = stage.width() as f32 - 4.6 * radius;
        let along = (self.frame % CROSSING) as f32 / CROSSING as f32 * 2.0;
        let along = if along > 1.0 { 2.0 - along } else { along };
        let t = (self.frame % BOUNCE) as f32 / BOUNCE as f32;
        let height = 4.0 * t * (1.0 - t);
        let x = stage.left as f32 + 2.3 * radius + along * room;
        let floor = self.floor();
        let top = stage.top as f32 + 1.6 * radius;
        (((x), floor - radius - height * (floor - radius - top)), height)
    }

    /// Where the orange touches the floor.
    fn floor(&self) -> f32 {
        let horizon = self.layout.horizon() as f32;
        let bars = (self.layout.stage.bottom - self.layout.units(32)) as f32;
        horizon + (bars - horizon) * 0.55
    }

    /// The small balls, those behind the orange first.
    fn moons(&self) -> [(Ball, bool); 2] {
        let ((x, y), _) = self.place();
        let radius = self.radius();
        let angle = (self.frame % ORBIT) as f32 / ORBIT as f32;
        let moon = |angle: f32, colours| {
            let depth = sin(angle);
            let at = (x + cos(angle) * radius * 1.85, y + depth * radius * 0.45);
            ((at, radius * (0.22 + 0.05 * depth), colours), depth > 0.0)
        };
        [moon(angle, LIME_PEEL), moon(angle + 0.5, LEMON_PEEL)]
    }

    /// The pixels it touches.
    pub fn area(&self) -> Area {
        let ((x, y), _) = self.place();
        let radius = self.radius();
        let shadow = Area::around(x, self.floor(), radius * 1.1).cut(Area {
            top: (self.floor() - radius * 0.3) as i32,
            bottom: (self.floor() + radius * 0.3) as i32 + 1,
            ..self.layout.stage
        });
        let body = Area::around(x, y, radius * 1.25);
        let all = self
            .moons()
            .iter()
            .fold(body, |area, ((at, radius, _), _)| area.union(Area::around(at.0, at.1, *radius + 1.0)));
        all.union(shadow).cut(self.layout.stage)
    }

    /// Draws it, as far as it is inside `clip`.
    pub fn draw(&self, canvas: &Canvas, clip: Area) {
        let clip = clip.cut(self.layout.stage);
        let (centre, height) = self.place();
        let radius = self.radius();
        self.shadow(canvas, clip, centre.0, height);
        let moons = self.moons();
        moons.iter().filter(|(_, front)| !front).for_each(|(moon, _)| ball(canvas, clip, *moon));
        ball(canvas, clip, (centre, radius, ORANGE_PEEL));
        // The stalk and a leaf, leaning as it flies.
        let lean = sin((self.frame % CROSSING) as f32 / CROSSING as f32 * 6.0) * 0.06;
        let top = (centre.0 + sin(lean) * radius, centre.1 - cos(lean) * radius * 0.93);
        canvas.disc(clip, top, radius * 0.09, 1.0, |_, _| 0x5a4420);
        for (along, size) in [(0.10, 0.07), (0.17, 0.10), (0.25, 0.11), (0.33, 0.09), (0.40, 0.06)] {
            let leaf = (top.0 + radius * along, top.1 - radius * along * 0.45);
            canvas.disc(clip, leaf, radius * size, 1.0, |_, dy| if dy < 0.0 { 0x6fbf4b } else { 0x4a9637 });
        }
        moons.iter().filter(|(_, front)| *front).for_each(|(moon, _)| ball(canvas, clip, *moon));
    }

    /// A flat shadow on the floor, wide and faint when the orange is high.
    fn shadow(&self, canvas: &Canvas, clip: Area, x: f32, height: f32) {
        let floor = self.floor();
        let wide = self.radius() * (0.75 + 0.3 * height);
        let flat = wide * 0.24;
        let strength = 130.0 - 75.0 * height;
        let area = canvas.clip(clip.cut(Area::around(x, floor, wide)));
        for py in area.top.max((floor - flat) as i32)..area.bottom.min((floor + flat) as i32 + 1) {
            for px in area.left..area.right {
                let (dx, dy) = ((px as f32 + 0.5 - x) / wide, (py as f32 + 0.5 - floor) / flat);
                let depth = 1.0 - dx * dx - dy * dy;
                if depth > 0.0 {
                    canvas.blend(px, py, 0x12060f, (strength * depth.min(0.5) * 2.0) as u32);
                }
            }
        }
    }
}

/// A ball lit from the upper left, with a highlight and light from behind along its lower edge.
fn ball(canvas: &Canvas, clip: Area, (centre, radius, [bright, body, dark]): Ball) {
    const LIGHT: (f32, f32, f32) = (-0.48, -0.62, 0.62);
    canvas.disc(clip, centre, radius, 1.0, |dx, dy| {
        let (x, y) = (dx / radius, dy / radius);
        let z = sqrt((1.0 - x * x - y * y).max(0.0));
        let lit = x * LIGHT.0 + y * LIGHT.1 + z * LIGHT.2;
        let colour = if lit > 0.0 {
            mix(body, bright, (lit * lit * 235.0) as u32)
        } else {
            mix(body, dark, (-lit * 1.7 * 255.0).min(255.0) as u32)
        };
        let gloss = ((lit - 0.93) * 14.0).clamp(0.0, 0.85);
        let rim = ((0.28 - z) * 1.4).clamp(0.0, 0.35) * if y > 0.0 { 1.0 } else { 0.3 };
        mix(mix(colour, 0xffb07a, (rim * 255.0) as u32), 0xffffff, (gloss * 255.0) as u32)
    });
}
