//! Looks at the VGA's memory and registers some thirty times a second while something happens, seldom while nothing
//! does, never while the virtio-gpu driver drives the monitor; and draws what changed.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

use super::{Changes, Picture, Vga, memory};
use crate::backend::display::{BYTES_PER_PIXEL, Frame, Mode, Rect};
use crate::backend::monitor::Painter;
use crate::base::Task;

const PAGE: usize = 4096;
/// Between two looks while something happens.
const ACTIVE: Duration = Duration::from_millis(33);
/// Between two looks while nothing does: how late the first change after a rest can be seen.
const RESTING: Duration = Duration::from_millis(125);
/// Looks without a change until a rest.
const LOOKS: u32 = 30;
/// Looks until a dark screen is shown as such: guests darken it for a moment while they set a mode.
const DARK_LOOKS: u32 = 3;

const TIMER: u32 = 0;
const BELL: u32 = 1;
const HANDED_OVER: u32 = 2;

/// Keeps a picture of what the VGA shows, in XRGB8888.
#[derive(Default)]
pub(super) struct Canvas {
    mode: Option<Mode>,
    picture: Option<Picture>,
    pixels: Vec<u8>,
    text: super::text::TextPainter,
    dark_looks: u32,
}

impl Canvas {
    /// The size of the picture, and its pixels, if there is one.
    pub fn frame(&self) -> Option<Frame<'_>> {
        self.mode.map(|mode| Frame { mode, stride: mode.width as usize * BYTES_PER_PIXEL, pixels: &self.pixels })
    }

    /// Forgets what was drawn: the next update draws everything.
    pub fn forget(&mut self) {
        self.picture = None;
        self.text.forget();
    }

    /// Somebody else used the monitor, or the machine was reset meanwhile: nothing of the old picture is to be seen again.
    fn blank(&mut self) {
        self.forget();
        self.pixels.fill(0);
        self.dark_looks = 0;
    }

    /// Whether there is something to show: a picture, or a screen that stays dark.
    fn is_settled(&self) -> bool {
        self.picture.is_some() || self.dark_looks >= DARK_LOOKS
    }

    /// Brings the picture up to date. Returns the rectangles that changed; the mode may be another one.
    pub fn update(&mut self, changes: &Changes, video: &memory::Store, text: &memory::Store) -> Vec<Rect> {
        let Changes { picture, pages, text_touched, registers: _ } = changes;
        let mut damage = Vec::new();
        if let Picture::Dark = picture {
            self.darken(&mut damage);
            return damage;
        }
        self.dark_looks = 0;
        let mode = picture.mode();
        let fresh = self.picture.as_ref() != Some(picture);
        if mode.is_some() && self.mode != mode {
            self.mode = mode;
            self.text.forget();
        }
        let Some(mode) = self.mode else { return damage };
        let row = mode.width as usize * BYTES_PER_PIXEL;
        self.pixels.resize(row * mode.height as usize, 0);
        match picture {
            Picture::Dark | Picture::Nothing => {}
            Picture::Text(mode) => {
                if !matches!(self.picture, Some(Picture::Text(_))) {
                    self.text.forget();
                }
                self.text.draw(mode, video, text, &mut self.pixels, &mut damage);
            }
            Picture::Graphics(graphics) => {
                let mut dirty = vec![fresh || (*text_touched && graphics.shows_text_memory()); mode.height as usize];
                for page in set_bits(pages) {
                    for line in graphics.lines_of(page * PAGE, (page + 1) * PAGE) {
                        dirty[line as usize] = true;
                    }
                }
                let mut line_pixels = vec![0; row];
                let mut run: Option<Rect> = None;
                for (y, old) in self.pixels.chunks_exact_mut(row).enumerate() {
                    let span = dirty[y].then(|| {
                        graphics.draw_line(y as u32, video, text, &mut line_pixels);
                        changed_span(old, &line_pixels)
                    });
                    match span.flatten() {
                        Some((x, width)) => {
                            old.copy_from_slice(&line_pixels);
                            run = Some(run.unwrap_or_default().union(Rect { x, y: y as u32, width, height: 1 }));
                        }
                        None => damage.extend(run.take()),
                    }
                }
                damage.extend(run);
            }
        }
        if *picture != Picture::Nothing {
            self.picture = Some(picture.clone());
        }
        damage
    }

    fn darken(&mut self, damage: &mut Vec<Rect>) {
        self.dark_looks = self.dark_looks.saturating_add(1);
        if self.dark_looks == DARK_LOOKS
            && let Some(mode) = self.mode
        {
            self.forget();
            self.pixels.fill(0);
            damage.push(Rect::full(mode));
        }
    }

    /// Whether it waits to see if the screen stays dark.
    fn is_unsure(&self) -> bool {
        (1..DARK_LOOKS).contains(&self.dark_looks)
    }
}

/// The indices of the bits that are set.
fn set_bits(words: &[u64]) -> impl Iterator<Item = usize> + '_ {
    let bits = |(i, &word): (usize, &u64)| (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| 64 * i + bit);
    words.iter().enumerate().filter(|(_, word)| **word != 0).flat_map(bits)
}

/// Where two rows differ: the first pixel, and how many to the last.
fn changed_span(old: &[u8], new: &[u8]) -> Option<(u32, u32)> {
    if old == new {
        return None;
    }
    let differs = |(a, b): (&[u8], &[u8])| a != b;
    let pixels = || old.chunks_exact(BYTES_PER_PIXEL).zip(new.chunks_exact(BYTES_PER_PIXEL));
    let first = pixels().position(differs)?;
    let last = pixels().rposition(differs)?;
    Some((first as u32, (last - first + 1) as u32))
}

/// The task; it belongs on the graphics thread.
pub(super) struct Refresh {
    vga: Arc<Vga>,
    timer: TimerFd,
    canvas: Canvas,
    /// The turn that was last painted in, and the last that was looked at.
    turn: u64,
    seen: u64,
    idle: u32,
}

impl Refresh {
    pub fn new(vga: Arc<Vga>) -> std::io::Result<Refresh> {
        let timer = TimerFd::new().map_err(|e| std::io::Error::from_raw_os_error(e.errno()))?;
        // A turn that never was: the first look paints everything.
        Ok(Refresh { vga, timer, canvas: Canvas::default(), turn: u64::MAX, seen: u64::MAX, idle: 0 })
    }

    /// Looks once. `None`: the monitor is another's.
    fn look(&mut self) -> Option<bool> {
        let (painter, turn) = self.vga.monitor.turn();
        if painter != Painter::Vga {
            return None;
        }
        let fresh = self.turn != turn;
        if std::mem::replace(&mut self.seen, turn) != turn {
            self.canvas.blank();
        }
        let changes = self.vga.take_changes(fresh || self.canvas.is_unsure());
        let Some(changes) = changes else { return Some(false) };
        let old_mode = self.canvas.mode;
        let damage = self.canvas.update(&changes, &self.vga.video, &self.vga.text);
        if fresh && !self.canvas.is_settled() {
            // What the other one showed stays until there is something to show in its place.
            return Some(changes.registers || self.canvas.is_unsure());
        }
        let whole = fresh || self.canvas.mode != old_mode;
        let Some(frame) = self.canvas.frame() else {
            if fresh && self.vga.monitor.paint(Painter::Vga, |sink| sink.mode(0, None)) {
                self.turn = turn;
            }
            return Some(true);
        };
        let painted = self.vga.monitor.paint(Painter::Vga, |sink| {
            if whole {
                sink.mode(0, Some(frame.mode));
                sink.present(0, frame, Rect::full(frame.mode));
            } else {
                damage.iter().for_each(|&rect| sink.present(0, frame, rect));
            }
        });
        if painted {
            self.turn = turn;
        }
        Some(whole || changes.registers || !damage.is_empty() || self.canvas.is_unsure())
    }

    fn wait(&mut self, next: Option<Duration>) {
        // It fails only for times that these are not.
        let _ = match next {
            Some(after) => self.timer.reset(after, None),
            None => self.timer.clear(),
        };
    }
}

impl Task for Refresh {
    fn descriptors(&self) -> Vec<(RawFd, u32)> {
        vec![
            (self.timer.as_raw_fd(), TIMER),
            (self.vga.bell.as_raw_fd(), BELL),
            (self.vga.monitor.handed_over(), HANDED_OVER),
        ]
    }

    fn start(&mut self) {
        self.ready(TIMER);
    }

    fn ready(&mut self, token: u32) {
        match token {
            BELL => {
                let _ = self.vga.bell.read();
                self.idle = 0;
            }
            HANDED_OVER => self.idle = 0,
            _ => {}
        }
        let next = match self.look() {
            None => None,
            Some(true) => {
                self.idle = 0;
                Some(ACTIVE)
            }
            Some(false) => {
                self.idle = (self.idle + 1).min(LOOKS);
                Some(if self.idle < LOOKS { ACTIVE } else { RESTING })
            }
        };
        self.vga.rest(next == Some(RESTING));
        self.wait(next);
    }

    fn stopped(self: Box<Self>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_from_the_first_to_the_last_difference() {
        let old = [0; 16];
        let mut new = old;
        assert_eq!(changed_span(&old, &new), None);
        new[5] = 1;
        new[15] = 1;
        assert_eq!(changed_span(&old, &new), Some((1, 3)));
    }

    #[test]
    fn bits_are_found_in_order() {
        assert_eq!(set_bits(&[1 | 1 << 63, 0, 2]).collect::<Vec<_>>(), [0, 63, 129]);
    }
}
