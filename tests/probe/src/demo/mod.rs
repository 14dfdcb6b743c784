//! The demo: a moving picture drawn by software, with what the machine is, what its self-test said, and what keys and
//! pointer do. It sleeps between frames and sends only what changed.

mod canvas;
mod events;
mod font;
mod keys;
mod maths;
mod panels;
mod pointer;
mod scene;
mod screen;

use crate::drivers::lapic;
use crate::machine::Machine;
use crate::report::{Failure, Outcome, Summary};
use crate::trap::VECTOR_TIMER;
use crate::{cpu, dma, println, text, time, trap};
use canvas::{Area, Canvas, Damage};
use events::{Happening, Sources};
use panels::{Rate, Typing};
use pointer::Pointer;
use scene::{Layout, Orange};
use screen::Screen;

/// Frames a second.
const RATE: u64 = 30;
/// Between two pictures when only the pointer moves.
const POINTER_MICROS: u64 = 8_000;
/// Canvases of a mode: what never changes, that with the panels, and that with all that moves.
const CANVASES: u64 = 3;

/// Runs until the machine is turned off; returns only when there is nothing to draw on.
pub fn run(machine: &Machine, summary: &Summary) {
    match Demo::open(machine).and_then(|mut demo| demo.run(machine, summary)) {
        Ok(()) => {}
        Err(Failure::Failed(why)) => println!("probe: demo: {why}"),
        Err(Failure::Absent) => println!("probe: demo: nothing to draw on"),
    }
}

struct Demo {
    screen: Screen,
    sources: Sources,
    typing: Typing,
    pointer: Pointer,
    frame: u32,
    rate: Rate,
}

/// A mode: its layout and its canvases.
struct Mode {
    layout: Layout,
    base: Canvas,
    back: Canvas,
    front: Canvas,
}

impl Demo {
    fn open(machine: &Machine) -> Outcome<Demo> {
        Ok(Demo {
            screen: Screen::open(machine)?,
            sources: Sources::open(machine),
            typing: Typing::new(),
            pointer: Pointer::new(),
            frame: 0,
            rate: Rate::new(),
        })
    }

    fn run(&mut self, machine: &Machine, summary: &Summary) -> Outcome<()> {
        let period = lapic::timer_khz(5_000) * 1000 / RATE;
        lapic::start_timer(VECTOR_TIMER, period.clamp(1000, u64::from(u32::MAX)) as u32, true);
        let mark = dma::mark();
        loop {
            dma::release(mark);
            let mode = self.enter(machine, summary)?;
            println!("probe: demo {}x{} on {}", mode.front.width, mode.front.height, self.screen.describe());
            self.show(&mode)?;
        }
    }

    /// Paints everything for the display's size.
    fn enter(&mut self, machine: &Machine, summary: &Summary) -> Outcome<Mode> {
        let pool = dma::unused();
        let (width, height) = self.screen.size(CANVASES, pool.end.saturating_sub(pool.start));
        let [base, back, front] = core::array::from_fn(|_| Canvas::new(width as i32, height as i32));
        let layout = Layout::new(width as i32, height as i32);
        let subtitle = text!("A bare-metal program drawing through {}", self.screen.describe());
        scene::paint(&base, &layout, subtitle.as_str());
        panels::machine(&base, &layout, machine, self.screen.describe(), self.sources.describe());
        panels::results(&base, &layout, summary);
        let whole = Area::new(0, 0, base.width, base.height);
        back.restore(&base, whole);
        self.pointer.forget(layout.scale);
        self.typing.draw(&back, &base, &layout);
        self.draw_pointer_panel(&back, &base, &layout);
        front.restore(&back, whole);
        self.screen.attach(&front)?;
        Ok(Mode { layout, base, back, front })
    }

    fn draw_pointer_panel(&self, back: &Canvas, base: &Canvas, layout: &Layout) -> Area {
        panels::pointer(back, base, layout, self.pointer.at, self.pointer.buttons, self.pointer.wheel)
    }

    /// Animates a mode until the display has another size.
    fn show(&mut self, mode: &Mode) -> Outcome<()> {
        let mut damage = Damage::new();
        let mut ticks = trap::count(VECTOR_TIMER);
        let mut shown = 0;
        loop {
            let seen = trap::total();
            let mut changed = self.take_input(mode, &mut damage);
            let now = trap::count(VECTOR_TIMER);
            let tick = now != ticks;
            if tick {
                ticks = now;
                self.tick(mode, &mut damage);
                changed = true;
            }
            // Moves of the pointer show at once, but not more often than anyone can see.
            if tick || (changed && time::micros() - shown > POINTER_MICROS) {
                self.compose(mode, &mut damage)?;
                shown = time::micros();
            }
            if self.screen.resized() {
                return Ok(());
            }
            cpu::idle(seen);
        }
    }

    /// The next frame of all that moves by itself.
    fn tick(&mut self, mode: &Mode, damage: &mut Damage) {
        damage.add(Orange::at(&mode.layout, self.frame).area());
        self.frame += 1;
        damage.add(Orange::at(&mode.layout, self.frame).area());
        let trail = self.pointer.area();
        if self.pointer.fade() {
            damage.add(trail);
        }
        self.rate.frame();
        damage.add(panels::frames(&mode.back, &mode.base, &mode.layout, self.frame, self.rate.value));
    }

    /// Reads all devices; says whether anything on the screen changes.
    fn take_input(&mut self, mode: &Mode, damage: &mut Damage) -> bool {
        let (width, height) = (mode.front.width, mode.front.height);
        let before = self.pointer.area();
        let (mut typed, mut pointed) = (false, false);
        let Demo { sources, typing, pointer, .. } = self;
        sources.poll(|happening| {
            let (x, y) = pointer.at.unwrap_or((width / 2, height / 2));
            match happening {
                Happening::Key { code, value } if (keys::BUTTON_LEFT..keys::BUTTON_LEFT + 8).contains(&code) => {
                    let bit = 1 << (code - keys::BUTTON_LEFT);
                    pointer.buttons = if value != 0 { pointer.buttons | bit } else { pointer.buttons & !bit };
                    pointed = true;
                }
                Happening::Key { code, value } => {
                    typing.key(code, value);
                    typed = true;
                }
                Happening::To { x: to_x, y: to_y } => {
                    let scale = |share: u32, size: i32| (i64::from(share) * i64::from(size - 1) / 65535) as i32;
                    let x = to_x.map_or(x, |share| scale(share, width));
                    let y = to_y.map_or(y, |share| scale(share, height));
                    pointer.move_to(x.clamp(0, width - 1), y.clamp(0, height - 1));
                    pointed = true;
                }
                Happening::By { x: by_x, y: by_y } => {
                    pointer.move_to(
                        x.saturating_add(by_x).clamp(0, width - 1),
                        y.saturating_add(by_y).clamp(0, height - 1),
                    );
                    pointed = true;
                }
                Happening::Wheel(steps) => {
                    pointer.wheel = pointer.wheel.wrapping_add(steps);
                    pointed = true;
                }
            }
        });
        if typed {
            damage.add(self.typing.draw(&mode.back, &mode.base, &mode.layout));
        }
        if pointed {
            damage.add(self.draw_pointer_panel(&mode.back, &mode.base, &mode.layout));
            damage.add(before);
            damage.add(self.pointer.area());
        }
        typed || pointed
    }

    /// Puts together what was damaged, and shows it.
    fn compose(&mut self, mode: &Mode, damage: &mut Damage) -> Outcome<()> {
        let areas = damage.take().map(|area| mode.front.clip(area)).filter(|area| !area.is_empty());
        let orange = Orange::at(&mode.layout, self.frame);
        for area in areas.clone() {
            mode.front.restore(&mode.back, area);
            orange.draw(&mode.front, area);
            self.pointer.draw(&mode.front, area);
        }
        self.screen.show(&mode.front, areas)
    }
}
