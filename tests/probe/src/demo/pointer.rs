//! The demo's pointer: a ring with cross hairs, and a trail that fades.

use super::canvas::{Area, Canvas};
use super::scene::palette;

/// Places that are remembered.
const TRAIL: usize = 24;
/// Frames until a place is forgotten.
const AGE: u8 = 20;

/// Where the pointer is, and was.
pub struct Pointer {
    /// Pixels; none before it first moved.
    pub at: Option<(i32, i32)>,
    /// Pressed buttons: left, right, middle from bit 0.
    pub buttons: u8,
    /// Steps of the wheel so far.
    pub wheel: i32,
    trail: [(i32, i32, u8); TRAIL],
    next: usize,
    scale: f32,
}

impl Pointer {
    /// Nowhere yet.
    pub fn new() -> Pointer {
        Pointer { at: None, buttons: 0, wheel: 0, trail: [(0, 0, 0); TRAIL], next: 0, scale: 1.0 }
    }

    /// The screen has another scale: places of before mean nothing.
    pub fn forget(&mut self, scale: f32) {
        *self = Pointer { buttons: self.buttons, wheel: self.wheel, scale, ..Pointer::new() };
    }

    /// It moves; the old place joins the trail.
    pub fn move_to(&mut self, x: i32, y: i32) {
        if let Some((old_x, old_y)) = self.at.filter(|at| *at != (x, y)) {
            self.trail[self.next] = (old_x, old_y, AGE);
            self.next = (self.next + 1) % TRAIL;
        }
        self.at = Some((x, y));
    }

    /// A frame passes; says whether anything fades.
    pub fn fade(&mut self) -> bool {
        let mut fading = false;
        for (_, _, age) in &mut self.trail {
            fading |= *age > 0;
            *age = age.saturating_sub(1);
        }
        fading
    }

    fn reach(&self) -> f32 {
        16.0 * self.scale
    }

    /// The pixels it touches.
    pub fn area(&self) -> Area {
        let at = self.at.map_or(Area::EMPTY, |(x, y)| Area::around(x as f32, y as f32, self.reach()));
        self.trail
            .iter()
            .filter(|(_, _, age)| *age > 0)
            .fold(at, |area, (x, y, _)| area.union(Area::around(*x as f32, *y as f32, 6.0 * self.scale)))
    }

    /// Draws it, as far as it is inside `clip`.
    pub fn draw(&self, canvas: &Canvas, clip: Area) {
        for (x, y, age) in self.trail.iter().filter(|(_, _, age)| *age > 0) {
            let share = f32::from(*age) / f32::from(AGE);
            let centre = (*x as f32 + 0.5, *y as f32 + 0.5);
            canvas.disc(clip, centre, (1.0 + 4.0 * share) * self.scale, share * 0.5, |_, _| palette::ORANGE);
        }
        let Some((x, y)) = self.at else { return };
        let (reach, thick) = (self.reach() as i32, self.scale as i32);
        let hole = reach / 3;
        for (dx, dy, width, height) in [
            (-reach, 0, reach - hole, thick),
            (hole, 0, reach - hole, thick),
            (0, -reach, thick, reach - hole),
            (0, hole, thick, reach - hole),
        ] {
            let arm = Area::new(x + dx, y + dy, width, height);
            canvas.veil(arm.inset(-1).cut(clip), 0x000000, 90);
            canvas.fill(arm.cut(clip), 0xffffff);
        }
        let colour = if self.buttons != 0 { palette::ORANGE } else { 0xffffff };
        let radius = if self.buttons != 0 { 7.0 } else { 3.0 } * self.scale;
        canvas.disc(clip, (x as f32 + 0.5, y as f32 + 0.5), radius, 0.9, |_, _| colour);
    }
}
