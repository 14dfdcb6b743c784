//! The demo's screen: virtio-gpu, or the Bochs display interface where there is none.

use super::canvas::{Area, Canvas};
use crate::dma::Mmio;
use crate::drivers::dispi;
use crate::drivers::gpu::{FORMAT_BGRX, Gpu, Rect};
use crate::drivers::virtio::kind;
use crate::machine::Machine;
use crate::report::Outcome;
use crate::{cpu, fail, trap};

const RESOURCE: u32 = 1;
const DEFAULT_SIZE: (u32, u32) = (1280, 800);
/// What the layout still fits in, and more than which is not worth the memory.
const LEAST: (u32, u32) = (640, 400);
const MOST: (u32, u32) = (3840, 2160);

/// Where pictures go.
pub enum Screen {
    /// virtio-gpu.
    Gpu {
        /// The device.
        gpu: Gpu,
        /// Configuration interrupts at the last look for a new size.
        seen: u32,
        /// Whether the scanout has a resource.
        shown: bool,
    },
    /// Bochs display interface.
    Dispi(Mmio),
}

impl Screen {
    /// The best there is.
    pub fn open(machine: &Machine) -> Outcome<Screen> {
        if let Some(gpu) = machine.pci.virtio(kind::GPU).find_map(|function| Gpu::open(function).ok()) {
            let seen = trap::count(gpu.device.config_vector);
            return Ok(Screen::Gpu { gpu, seen, shown: false });
        }
        match dispi::find(&machine.pci).and_then(dispi::frame_buffer) {
            Some(memory) => Ok(Screen::Dispi(memory)),
            None => fail!("the machine has no display"),
        }
    }

    /// What it is, for a person.
    pub fn describe(&self) -> &'static str {
        match self {
            Screen::Gpu { .. } => "virtio-gpu",
            Screen::Dispi(_) => "Bochs display",
        }
    }

    /// The size a picture should have, such that `pictures` of them fit in `bytes` of memory.
    pub fn size(&mut self, pictures: u64, bytes: u64) -> (u32, u32) {
        let (width, height) = match self {
            Screen::Gpu { gpu, .. } => match gpu.display() {
                Ok(Some(Rect { width, height, .. })) => (width, height),
                _ => DEFAULT_SIZE,
            },
            Screen::Dispi(_) => DEFAULT_SIZE,
        };
        let (width, height) = (width.clamp(LEAST.0, MOST.0), height.clamp(LEAST.1, MOST.1));
        if u64::from(width) * u64::from(height) * 4 * pictures > bytes { LEAST } else { (width, height) }
    }

    /// Shows a new picture as a whole, in place of any before.
    pub fn attach(&mut self, canvas: &Canvas) -> Outcome<()> {
        let (width, height) = (canvas.width as u32, canvas.height as u32);
        match self {
            Screen::Gpu { gpu, shown, .. } => {
                if core::mem::replace(shown, false) {
                    gpu.set_scanout(Rect::default(), 0)?;
                    gpu.destroy(RESOURCE)?;
                }
                gpu.create(RESOURCE, FORMAT_BGRX, width, height, canvas.memory(), 16)?;
                gpu.set_scanout(Rect::of_size(width, height), RESOURCE)?;
                *shown = true;
            }
            Screen::Dispi(_) => dispi::set_mode(width as u16, height as u16),
        }
        self.show(canvas, core::iter::once(Area::new(0, 0, canvas.width, canvas.height)))
    }

    /// Shows what changed.
    pub fn show(&mut self, canvas: &Canvas, areas: impl Iterator<Item = Area>) -> Outcome<()> {
        match self {
            Screen::Gpu { gpu, .. } => {
                let rects = areas.map(|area| area.rect());
                // Asleep until the device interrupts: the demo should cost no more than its pictures.
                let interrupts = gpu.vector() != 0;
                gpu.update_all(RESOURCE, canvas.width as u32, rects, |seen| {
                    if interrupts {
                        cpu::idle(seen);
                    }
                })
            }
            Screen::Dispi(memory) => {
                let stride = canvas.width as usize;
                let pixels = canvas.memory().words_mut();
                for area in areas {
                    for y in area.top..area.bottom {
                        let start = y as usize * stride + area.left as usize;
                        memory.copy_words(start as u64 * 4, &pixels[start..start + area.width() as usize]);
                    }
                }
                Ok(())
            }
        }
    }

    /// Whether the display has a new size.
    pub fn resized(&mut self) -> bool {
        let Screen::Gpu { gpu, seen, .. } = self else { return false };
        let now = trap::count(gpu.device.config_vector);
        if gpu.device.config_vector != 0 && now == *seen {
            return false;
        }
        *seen = now;
        gpu.display_changed().unwrap_or(false)
    }
}
