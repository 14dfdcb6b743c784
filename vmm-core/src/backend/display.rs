//! Where a guest's picture goes: the contract between the graphics devices and the console window, the thumbnail, the
//! screenshot and the tests, and [`Screen`], the sink that they share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes per pixel of every frame: little-endian XRGB8888 (the byte order in memory is B, G, R, unused).
pub const BYTES_PER_PIXEL: usize = 4;

/// The size of a scanout, pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// A rectangle of pixels, its origin at the upper left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rect {
    /// Left edge.
    pub x: u32,
    /// Upper edge.
    pub y: u32,
    /// Width.
    pub width: u32,
    /// Height.
    pub height: u32,
}

impl Rect {
    /// The whole of a mode.
    pub fn full(mode: Mode) -> Rect {
        Rect { x: 0, y: 0, width: mode.width, height: mode.height }
    }

    /// Whether it holds no pixel.
    pub fn is_empty(self) -> bool {
        self.width == 0 || self.height == 0
    }

    /// The part of it inside `mode`; empty if none is.
    pub fn clip(self, mode: Mode) -> Rect {
        let x = self.x.min(mode.width);
        let y = self.y.min(mode.height);
        let right = self.x.saturating_add(self.width).min(mode.width);
        let bottom = self.y.saturating_add(self.height).min(mode.height);
        Rect { x, y, width: right - x, height: bottom - y }
    }

    /// The smallest rectangle that holds both.
    pub fn union(self, other: Rect) -> Rect {
        if self.is_empty() {
            return other;
        }
        if other.is_empty() {
            return self;
        }
        let (x, y) = (self.x.min(other.x), self.y.min(other.y));
        let right = (self.x + self.width).max(other.x + other.width);
        let bottom = (self.y + self.height).max(other.y + other.height);
        Rect { x, y, width: right - x, height: bottom - y }
    }

    fn area(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }
}

/// A borrowed picture.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// Its size.
    pub mode: Mode,
    /// Bytes from one row to the next, at least `mode.width * 4`.
    pub stride: usize,
    /// XRGB8888 rows; at least `stride * (height - 1) + width * 4` bytes.
    pub pixels: &'a [u8],
}

/// The guest's pointer picture.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cursor {
    /// Shown at all.
    pub visible: bool,
    /// Where the hot spot is on the scanout, pixels.
    pub x: i32,
    /// See `x`.
    pub y: i32,
    /// The hot spot inside the image.
    pub hot_x: u32,
    /// See `hot_x`.
    pub hot_y: u32,
    /// The image: width, height and ARGB8888 pixels (premultiplied by nobody).
    pub image: Option<Arc<CursorImage>>,
}

/// The pixels of a [`Cursor`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorImage {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// ARGB8888, little-endian, `width * height * 4` bytes.
    pub pixels: Vec<u8>,
}

/// Receives what a graphics device shows. Called from the device's thread; must not block.
pub trait DisplaySink: Send {
    /// The scanout has a new size, or shows nothing (`None`). The next `present` covers all of it; until it comes, what was
    /// shown before stays to be seen.
    fn mode(&mut self, scanout: u32, mode: Option<Mode>);
    /// `damage` of `frame` changed since the last call. `frame.mode` is the last mode set.
    fn present(&mut self, scanout: u32, frame: Frame<'_>, damage: Rect);
    /// The pointer's picture or place changed.
    fn cursor(&mut self, scanout: u32, cursor: Cursor);
}

/// The most rectangles a [`Screen`] keeps before it merges them into one.
const MAX_DAMAGE: usize = 32;

/// A copy of scanout 0 that any thread may look at: the sink that window, thumbnail and screenshot share.
///
/// Cheap to clone. The waker is called, outside the lock, when there is something new to see and the viewer has taken
/// everything before.
#[derive(Clone)]
pub struct Screen {
    shared: Arc<Mutex<Shared>>,
    waker: Arc<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct Shared {
    mode: Option<Mode>,
    /// The mode that begins with the next picture: nobody is to see an empty one.
    next_mode: Option<Mode>,
    pixels: Vec<u8>,
    damage: Vec<Rect>,
    mode_changed: bool,
    cursor: Cursor,
    cursor_changed: bool,
    woken: bool,
    frames: u64,
}

/// What changed since the last [`Screen::take`], with the picture as it is now.
pub struct Update<'a> {
    /// The size; `None` when the screen is off.
    pub mode: Option<Mode>,
    /// The size differs from last time: drop the old picture.
    pub mode_changed: bool,
    /// XRGB8888 rows of `mode.width * 4` bytes.
    pub pixels: &'a [u8],
    /// What to upload; no two overlap needlessly.
    pub damage: &'a [Rect],
    /// The pointer as it is now.
    pub cursor: &'a Cursor,
    /// The pointer changed.
    pub cursor_changed: bool,
}

impl Screen {
    /// A screen that is off. `waker` is called from a device's thread when there is news; it must not block.
    pub fn new(waker: impl Fn() + Send + Sync + 'static) -> Screen {
        Screen { shared: Arc::default(), waker: Arc::new(waker) }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands what is new to `view` and counts it as seen. The device waits while `view` runs: only copy in it.
    pub fn take<R>(&self, view: impl FnOnce(Update<'_>) -> R) -> R {
        let mut shared = self.lock();
        let damage = std::mem::take(&mut shared.damage);
        let result = view(Update {
            mode: shared.mode,
            mode_changed: shared.mode_changed,
            pixels: &shared.pixels,
            damage: &damage,
            cursor: &shared.cursor,
            cursor_changed: shared.cursor_changed,
        });
        shared.mode_changed = false;
        shared.cursor_changed = false;
        shared.woken = false;
        result
    }

    /// The picture as it is: its size and XRGB8888 rows. `None` when the screen is off.
    pub fn snapshot(&self) -> Option<(Mode, Vec<u8>)> {
        let shared = self.lock();
        shared.mode.map(|mode| (mode, shared.pixels.clone()))
    }

    /// Its size now; `None` when it is off.
    pub fn mode(&self) -> Option<Mode> {
        self.lock().mode
    }

    /// How many times a device presented something: changes when the picture may have.
    pub fn frames(&self) -> u64 {
        self.lock().frames
    }

    /// A sink that draws here.
    pub fn sink(&self) -> Box<dyn DisplaySink> {
        Box::new(ScreenSink(self.clone()))
    }

    fn update(&self, change: impl FnOnce(&mut Shared) -> bool) {
        let wake = {
            let mut shared = self.lock();
            change(&mut shared) && !std::mem::replace(&mut shared.woken, true)
        };
        if wake {
            (self.waker)();
        }
    }
}

struct ScreenSink(Screen);

impl DisplaySink for ScreenSink {
    fn mode(&mut self, scanout: u32, mode: Option<Mode>) {
        if scanout != 0 {
            return;
        }
        self.0.update(|s| {
            s.next_mode = mode.filter(|_| s.mode != mode);
            let off = mode.is_none() && s.mode.is_some();
            if off {
                s.set_mode(None);
            }
            off
        });
    }

    fn present(&mut self, scanout: u32, frame: Frame<'_>, damage: Rect) {
        if scanout != 0 {
            return;
        }
        self.0.update(|s| {
            let damage = damage.clip(frame.mode);
            if !damage.is_empty() && s.next_mode.take_if(|next| *next == frame.mode).is_some() {
                s.set_mode(Some(frame.mode));
            }
            if s.mode != Some(frame.mode) || damage.is_empty() {
                return false;
            }
            let row = frame.mode.width as usize * BYTES_PER_PIXEL;
            let (left, len) = (damage.x as usize * BYTES_PER_PIXEL, damage.width as usize * BYTES_PER_PIXEL);
            for y in damage.y as usize..(damage.y + damage.height) as usize {
                let from = y * frame.stride + left;
                let Some(source) = frame.pixels.get(from..from + len) else { break };
                s.pixels[y * row + left..][..len].copy_from_slice(source);
            }
            s.add_damage(damage);
            s.frames += 1;
            true
        });
    }

    fn cursor(&mut self, scanout: u32, cursor: Cursor) {
        if scanout != 0 {
            return;
        }
        self.0.update(|s| {
            if s.cursor == cursor {
                return false;
            }
            s.cursor = cursor;
            s.cursor_changed = true;
            true
        });
    }
}

impl Shared {
    fn set_mode(&mut self, mode: Option<Mode>) {
        self.mode = mode;
        self.mode_changed = true;
        self.damage.clear();
        self.pixels.clear();
        let bytes = mode.map_or(0, |m| m.width as usize * m.height as usize * BYTES_PER_PIXEL);
        self.pixels.resize(bytes, 0);
        self.frames += 1;
    }

    /// Adds a rectangle; joins it to one it wastes little with, and all to one when there are many.
    fn add_damage(&mut self, rect: Rect) {
        for old in &mut self.damage {
            let both = old.union(rect);
            if both.area() <= old.area() + rect.area() {
                *old = both;
                return;
            }
        }
        self.damage.push(rect);
        if self.damage.len() > MAX_DAMAGE {
            let all = self.damage.drain(..).fold(Rect::default(), Rect::union);
            self.damage.push(all);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const MODE: Mode = Mode { width: 8, height: 4 };

    fn rect(x: u32, y: u32, width: u32, height: u32) -> Rect {
        Rect { x, y, width, height }
    }

    fn frame(pixels: &[u8]) -> Frame<'_> {
        Frame { mode: MODE, stride: 32, pixels }
    }

    #[test]
    fn only_the_damaged_pixels_are_copied_and_reported() {
        let screen = Screen::new(|| ());
        let mut sink = screen.sink();
        sink.mode(0, Some(MODE));
        sink.present(0, frame(&[7; 128]), rect(2, 1, 3, 2));
        screen.take(|u| {
            assert!(u.mode_changed);
            assert_eq!(u.damage, [rect(2, 1, 3, 2)]);
            assert_eq!(u.pixels.iter().filter(|&&b| b == 7).count(), 3 * 2 * 4);
            assert_eq!(u.pixels[32 + 8], 7);
        });
        screen.take(|u| assert!(!u.mode_changed && u.damage.is_empty()));
    }

    #[test]
    fn a_new_mode_begins_with_its_first_picture() {
        let screen = Screen::new(|| ());
        let mut sink = screen.sink();
        sink.mode(0, Some(MODE));
        assert_eq!(screen.mode(), None, "there is nothing to be seen yet");
        sink.present(0, frame(&[7; 128]), Rect::full(MODE));
        let small = Mode { width: 2, height: 1 };
        sink.mode(0, Some(small));
        assert_eq!(screen.snapshot(), Some((MODE, vec![7; 128])), "the old picture stays");
        sink.present(0, frame(&[8; 128]), Rect::full(MODE));
        sink.mode(0, Some(MODE));
        sink.present(0, Frame { mode: small, stride: 8, pixels: &[1; 8] }, Rect::full(small));
        assert_eq!(screen.mode(), Some(MODE), "it was thought better of");
        sink.mode(0, Some(small));
        sink.present(0, Frame { mode: small, stride: 8, pixels: &[1; 8] }, Rect::full(small));
        assert_eq!(screen.snapshot(), Some((small, vec![1; 8])));
        sink.mode(0, None);
        assert_eq!(screen.snapshot(), None);
    }

    #[test]
    fn the_viewer_is_woken_once_until_it_looks() {
        let count = Arc::new(AtomicUsize::new(0));
        let counter = count.clone();
        let screen = Screen::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let mut sink = screen.sink();
        sink.mode(0, Some(MODE));
        sink.present(0, frame(&[1; 128]), Rect::full(MODE));
        sink.present(0, frame(&[2; 128]), Rect::full(MODE));
        assert_eq!(count.load(Ordering::Relaxed), 1);
        screen.take(|_| ());
        sink.present(0, frame(&[3; 128]), Rect::full(MODE));
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn damage_outside_the_mode_is_clipped_and_short_frames_do_no_harm() {
        let screen = Screen::new(|| ());
        let mut sink = screen.sink();
        sink.mode(0, Some(MODE));
        sink.present(0, frame(&[9; 40]), rect(u32::MAX, 0, 5, 5));
        sink.present(0, frame(&[9; 40]), rect(0, 0, u32::MAX, u32::MAX));
        screen.take(|u| assert_eq!(u.damage, [Rect::full(MODE)]));
    }

    #[test]
    fn scattered_damage_is_merged_before_it_grows_without_bound() {
        let screen = Screen::new(|| ());
        let mut sink = screen.sink();
        let mode = Mode { width: 256, height: 256 };
        sink.mode(0, Some(mode));
        let pixels = vec![0; 256 * 256 * 4];
        for i in 0..100 {
            let damage = rect((i * 37) % 250, (i * 91) % 250, 1, 1);
            sink.present(0, Frame { mode, stride: 1024, pixels: &pixels }, damage);
        }
        screen.take(|u| assert!(u.damage.len() <= MAX_DAMAGE));
    }
}
