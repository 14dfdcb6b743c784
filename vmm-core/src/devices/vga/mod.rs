//! The VGA-class face of the graphics function: IBM VGA registers and memory, and the Bochs display interface on top,
//! for firmware, boot loaders, and systems that have no virtio-gpu driver (yet).
//!
//! BAR0 is the video memory. BAR2, beside virtio's registers, has the EDID at 0, the VGA ports 3C0h to 3DFh at 400h, the
//! Bochs registers at 500h, two bytes each, and the byte order at 600h.

mod dispi;
mod graphics;
mod memory;
mod refresh;
mod registers;
#[cfg(test)]
mod tests;
mod text;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::backend::display::Mode;
use crate::backend::monitor::Monitor;
use crate::base::{Bytes, SavedState, Section, StateError, Task};
use crate::hw::{Action, Bus, BusDevice, MemorySlots, SharedRegion, SlotId};
use crate::pci::{BarKind, ConfigSpace};
use crate::virtio::Face;
use dispi::Dispi;
use memory::{Planes, Store, Touched, View};
use registers::{Registers, RegistersState, index};

/// The video memory: enough for 2560x1600 at 32 bits.
const VIDEO_SIZE: usize = 16 << 20;
const PAGE: usize = 4096;
const VIDEO_BAR: usize = 0;
const REGISTER_BAR: usize = 2;

const DISPI_PORT: u64 = 0x1ce;
const GFX_GRAPHICS: u8 = 1;

/// The byte order register's value for little-endian pixels; there are no others here.
const LITTLE_ENDIAN: u32 = 0x1e1e_1e1e;

/// The face. Give it to the transport, its ports and window to the buses, and its task to the graphics thread.
pub struct Vga {
    core: Mutex<Core>,
    video: Store,
    text: Store,
    slots: Arc<dyn MemorySlots>,
    monitor: Monitor,
    /// Wakes the refresh while it rests.
    bell: EventFd,
    resting: AtomicBool,
    started: Instant,
}

struct Core {
    registers: Registers,
    dispi: Dispi,
    latch: [u8; 4],
    /// The window as the guest sees it: RAM, while it is some.
    window: Option<(View, SlotId)>,
    /// BAR0 in the guest's memory.
    bar: Option<SlotId>,
    touched: TouchedMemory,
}

/// What changed since the last look.
struct TouchedMemory {
    /// A bit for each page of the video memory.
    pages: Vec<u64>,
    text: bool,
    registers: bool,
}

impl TouchedMemory {
    fn nothing() -> TouchedMemory {
        TouchedMemory { pages: vec![0; VIDEO_SIZE / PAGE / 64], text: false, registers: false }
    }

    fn everything() -> TouchedMemory {
        TouchedMemory { pages: vec![!0; VIDEO_SIZE / PAGE / 64], text: true, registers: true }
    }

    /// Adds the dirty log of a slot that shows the video memory from `offset` on.
    fn add_pages(&mut self, log: &[u64], offset: usize) {
        for (i, word) in log.iter().enumerate().filter(|(_, word)| **word != 0) {
            for page in (0..64).filter(|bit| word >> bit & 1 != 0).map(|bit| offset / PAGE + 64 * i + bit) {
                self.add_page(page);
            }
        }
    }

    fn add_page(&mut self, page: usize) {
        if let Some(word) = self.pages.get_mut(page / 64) {
            *word |= 1 << (page % 64);
        }
    }

    fn any(&self) -> bool {
        self.text || self.registers || self.pages.iter().any(|&word| word != 0)
    }
}

/// What the refresh is given when there is something to do.
struct Changes {
    picture: Picture,
    /// A bit for each page of the video memory that was written.
    pages: Vec<u64>,
    text_touched: bool,
    registers: bool,
}

/// What the registers describe.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Picture {
    /// The screen is switched dark.
    Dark,
    /// The registers make no sense yet.
    Nothing,
    Text(text::Text),
    Graphics(graphics::Graphics),
}

impl Picture {
    fn mode(&self) -> Option<Mode> {
        match self {
            Picture::Dark | Picture::Nothing => None,
            Picture::Text(text) => Some(text.mode()),
            Picture::Graphics(graphics) => Some(graphics.mode()),
        }
    }
}

/// What a checkpoint keeps.
#[derive(Serialize, Deserialize)]
struct State {
    registers: RegistersState,
    dispi: Dispi,
    latch: [u8; 4],
    text: Bytes,
    /// The pages of the video memory that are not zero.
    video: Vec<(u32, Bytes)>,
}

impl SavedState for State {
    const VERSION: u32 = 1;
}

impl Vga {
    /// A VGA that has just been switched on, plugged into `monitor`. Fails when the host lacks memory or descriptors.
    pub fn new(slots: Arc<dyn MemorySlots>, monitor: Monitor) -> io::Result<Arc<Vga>> {
        let core = Core {
            registers: Registers::default(),
            dispi: Dispi::default(),
            latch: [0; 4],
            window: None,
            bar: None,
            touched: TouchedMemory::nothing(),
        };
        Ok(Arc::new(Vga {
            core: Mutex::new(core),
            video: Store(SharedRegion::new(VIDEO_SIZE)?),
            text: Store(SharedRegion::new(memory::TEXT_SIZE)?),
            slots,
            monitor,
            bell: EventFd::new(EFD_NONBLOCK)?,
            resting: AtomicBool::new(false),
            started: Instant::now(),
        }))
    }

    /// Puts the VGA's fixed ports and its window at A0000h on the buses; false where one of them is taken.
    #[must_use]
    pub fn attach(self: &Arc<Vga>, memory: &Bus, ports: &Bus) -> bool {
        ports.insert(u64::from(registers::FIRST_PORT), u64::from(registers::PORTS), Arc::new(VgaPorts(self.clone())))
            && ports.insert(DISPI_PORT, 4, Arc::new(DispiPorts(self.clone())))
            && memory.insert(memory::WINDOW, memory::WINDOW_SIZE, Arc::new(Window(self.clone())))
    }

    /// The task that draws what changes, for the thread that runs the graphics device. It runs as long as the machine
    /// lives. Fails when the host is out of file descriptors.
    pub fn refresh(self: &Arc<Vga>) -> io::Result<Box<dyn Task>> {
        Ok(Box::new(refresh::Refresh::new(self.clone())?))
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something changed: an idle refresh is to look now.
    fn wake(&self) {
        if self.resting.swap(false, Ordering::AcqRel) {
            let _ = self.bell.write(1);
        }
    }

    /// The refresh looks seldom from now on, or often.
    fn rest(&self, resting: bool) {
        self.resting.store(resting, Ordering::Release);
    }

    /// What changed since the last call, if anything did or `always`.
    fn take_changes(&self, always: bool) -> Option<Changes> {
        let mut guard = self.lock();
        let core = &mut *guard;
        self.collect_window(core);
        if let Some(bar) = core.bar
            && let Ok(log) = self.slots.take_dirty(bar)
        {
            core.touched.add_pages(&log, 0);
        }
        if !core.touched.any() && !always {
            return None;
        }
        let TouchedMemory { pages, text, registers } = std::mem::replace(&mut core.touched, TouchedMemory::nothing());
        Some(Changes { picture: core.picture(), pages, text_touched: text, registers })
    }

    /// Notes what the guest wrote through the window while it is RAM.
    fn collect_window(&self, core: &mut Core) {
        if let Some((view, slot)) = core.window
            && let Ok(log) = self.slots.take_dirty(slot)
        {
            if view.text {
                core.touched.text |= log.iter().any(|&word| word != 0);
            } else {
                core.touched.add_pages(&log, view.offset);
            }
        }
    }

    /// Takes the window's RAM away if it is no longer what the registers say.
    fn close_window(&self, core: &mut Core, wanted: Option<View>) {
        if let Some((view, slot)) = core.window
            && wanted != Some(view)
        {
            core.window = None;
            let _ = self.slots.unmap(slot);
            // Another CPU may have written until just now, and the log is gone.
            if view.text {
                core.touched.text = true;
            } else {
                (view.offset / PAGE..(view.offset + view.len) / PAGE).for_each(|page| core.touched.add_page(page));
            }
        }
    }

    /// The guest uses the window: shows it as RAM, if it can be. Only then, because a mode is set by many writes.
    fn open_window(&self, core: &mut Core) {
        let Some(view) = core.view().filter(|_| core.window.is_none()) else { return };
        let store = if view.text { &self.text } else { &self.video };
        // Where the host has no room for another slot, every access goes on to be looked at.
        if let Ok(slot) = self.slots.map(view.address, &store.0, view.offset as u64, view.len as u64) {
            core.window = Some((view, slot));
        }
    }

    /// Does something with the registers, and what follows from it.
    fn change(&self, work: impl FnOnce(&mut Core) -> bool) {
        let mut core = self.lock();
        if work(&mut core) {
            core.touched.registers = true;
            let wanted = core.view();
            self.close_window(&mut core, wanted);
            drop(core);
            self.wake();
        }
    }

    fn read_port(&self, port: u16) -> u8 {
        let mut core = self.lock();
        let wide = core.dispi.wide_dac();
        core.registers.read(port, self.started.elapsed(), wide)
    }

    fn write_port(&self, port: u16, value: u8) {
        self.change(|core| {
            let wide = core.dispi.wide_dac();
            core.registers.write(port, value, wide)
        });
    }

    fn write_dispi(&self, index: u16, value: u16) {
        self.change(|core| {
            let before = core.dispi.clone();
            if let Some(len) = core.dispi.write(index, value, VIDEO_SIZE) {
                self.video.clear(len);
                for page in 0..len.div_ceil(PAGE) {
                    core.touched.add_page(page);
                }
            }
            core.dispi != before
        });
    }

    fn access_window<R>(&self, work: impl FnOnce(&mut Planes<'_>) -> R) -> (R, MutexGuard<'_, Core>) {
        let mut guard = self.lock();
        let Core { registers, dispi, latch, .. } = &mut *guard;
        let mut planes = Planes { registers, dispi, video: &self.video, text: &self.text, latch };
        let result = work(&mut planes);
        (result, guard)
    }

    fn read_window(&self, offset: u64, data: &mut [u8]) {
        let read = |planes: &mut Planes<'_>| {
            for (i, byte) in data.iter_mut().enumerate() {
                *byte = planes.read(offset + i as u64);
            }
        };
        let ((), mut core) = self.access_window(read);
        self.open_window(&mut core);
    }

    fn write_window(&self, offset: u64, data: &[u8]) {
        let write = |planes: &mut Planes<'_>| {
            let mut all = [Touched::Nothing; 8];
            for (i, (&byte, touched)) in data.iter().zip(&mut all).enumerate() {
                *touched = planes.write(offset + i as u64, byte);
            }
            all
        };
        let (all, mut core) = self.access_window(write);
        for touched in all {
            match touched {
                Touched::Nothing => {}
                Touched::Text => core.touched.text = true,
                Touched::Video(at) => core.touched.add_page(at / PAGE),
            }
        }
        self.open_window(&mut core);
        drop(core);
        self.wake();
    }

    /// The part of the registers' BAR that is ours: ports, Bochs registers, extensions.
    fn read_register(&self, offset: u64, data: &mut [u8]) {
        match offset {
            0x000..0x180 => {
                let edid = self.monitor.edid();
                for (i, byte) in data.iter_mut().enumerate() {
                    *byte = edid.get(offset as usize + i).copied().unwrap_or(0);
                }
            }
            0x400..0x420 => {
                for (i, byte) in data.iter_mut().enumerate() {
                    *byte = self.read_port(0x3c0 + (offset - 0x400) as u16 + i as u16);
                }
            }
            0x500..0x516 => fill(data, &self.lock().dispi.read((offset - 0x500) as u16 / 2, VIDEO_SIZE).to_le_bytes()),
            0x600..0x604 => fill(data, &8u32.to_le_bytes()),
            0x604..0x608 => fill(data, &LITTLE_ENDIAN.to_le_bytes()),
            _ => {}
        }
    }

    fn write_register(&self, offset: u64, data: &[u8]) {
        match offset {
            0x400..0x420 => {
                for (i, &byte) in data.iter().enumerate() {
                    self.write_port(0x3c0 + (offset - 0x400) as u16 + i as u16, byte);
                }
            }
            0x500..0x516 => {
                if let Ok(bytes) = data.try_into() {
                    self.write_dispi((offset - 0x500) as u16 / 2, u16::from_le_bytes(bytes));
                }
            }
            _ => {}
        }
    }

    fn state(&self) -> State {
        let Core { registers, dispi, latch, window: _, bar: _, touched: _ } = &*self.lock();
        let mut text = vec![0; memory::TEXT_SIZE];
        self.text.copy_to(0, &mut text);
        let page = |index: usize| {
            let mut bytes = vec![0; PAGE];
            self.video.copy_to(index * PAGE, &mut bytes);
            (bytes != [0; PAGE]).then_some((index as u32, Bytes(bytes)))
        };
        State {
            registers: registers.save(),
            dispi: dispi.clone(),
            latch: *latch,
            text: Bytes(text),
            video: (0..VIDEO_SIZE / PAGE).filter_map(page).collect(),
        }
    }
}

impl Core {
    fn view(&self) -> Option<View> {
        memory::view(&self.registers, &self.dispi, VIDEO_SIZE)
    }

    fn picture(&self) -> Picture {
        let (r, wide) = (&self.registers, self.dispi.wide_dac());
        if r.is_dark() {
            return Picture::Dark;
        }
        let graphics = if self.dispi.is_enabled() {
            graphics::Graphics::linear(r, &self.dispi, VIDEO_SIZE)
        } else if r.gfx[index::GFX_MISC] & GFX_GRAPHICS != 0 {
            graphics::Graphics::vga(r, wide)
        } else {
            return text::Text::new(r, wide).map_or(Picture::Nothing, Picture::Text);
        };
        graphics.map_or(Picture::Nothing, Picture::Graphics)
    }
}

/// Copies the low bytes of a register into an access of any size.
fn fill(data: &mut [u8], register: &[u8]) {
    data.fill(0);
    for (byte, value) in data.iter_mut().zip(register) {
        *byte = *value;
    }
}

impl Face for Vga {
    fn describe(&self, config: &mut ConfigSpace) {
        config.add_bar(VIDEO_BAR, BarKind::Prefetchable, VIDEO_SIZE as u32);
    }

    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]) {
        match bar {
            VIDEO_BAR => self.video.copy_to(offset as usize, data),
            REGISTER_BAR => self.read_register(offset, data),
            _ => {}
        }
    }

    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) {
        match bar {
            VIDEO_BAR => {
                self.video.copy_from(offset as usize, data);
                self.lock().touched.add_page(offset as usize / PAGE);
                self.wake();
            }
            REGISTER_BAR => self.write_register(offset, data),
            _ => {}
        }
    }

    fn bar_moved(&self, bar: usize, address: Option<u64>) {
        if bar != VIDEO_BAR {
            return;
        }
        let mut core = self.lock();
        if let Some(slot) = core.bar.take() {
            let _ = self.slots.unmap(slot);
            core.touched = TouchedMemory::everything();
        }
        // Where the host has no room for another slot, or RAM is in the way, every access exits.
        core.bar = address.and_then(|at| self.slots.map(at, &self.video.0, 0, VIDEO_SIZE as u64).ok());
    }

    fn reset(&self) {
        let mut core = self.lock();
        self.close_window(&mut core, None);
        core.registers = Registers::default();
        core.dispi = Dispi::default();
        core.latch = [0; 4];
        self.video.clear(VIDEO_SIZE);
        self.text.clear(memory::TEXT_SIZE);
        core.touched = TouchedMemory::everything();
        drop(core);
        self.wake();
    }

    fn save(&self) -> Result<Section, StateError> {
        Section::encode("vga", &self.state())
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let State { registers, dispi, latch, text, video } = section.decode()?;
        let registers = Registers::restore(registers)?;
        let dispi = dispi.check()?;
        let whole = |(page, bytes): &(u32, Bytes)| (*page as usize) < VIDEO_SIZE / PAGE && bytes.0.len() == PAGE;
        if text.0.len() != memory::TEXT_SIZE || !video.iter().all(whole) {
            return Err(StateError::invalid("VGA", "its memory has another size"));
        }
        let mut core = self.lock();
        self.close_window(&mut core, None);
        core.registers = registers;
        core.dispi = dispi;
        core.latch = latch;
        self.text.copy_from(0, &text.0);
        self.video.clear(VIDEO_SIZE);
        for (page, bytes) in video {
            self.video.copy_from(page as usize * PAGE, &bytes.0);
        }
        core.touched = TouchedMemory::everything();
        drop(core);
        self.wake();
        Ok(())
    }
}

/// Ports 3B0h to 3DFh.
struct VgaPorts(Arc<Vga>);

impl BusDevice for VgaPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.0.read_port(registers::FIRST_PORT + offset as u16 + i as u16);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        for (i, &byte) in data.iter().enumerate() {
            self.0.write_port(registers::FIRST_PORT + offset as u16 + i as u16, byte);
        }
        None
    }
}

/// Ports 1CEh (index) and 1CFh or 1D0h (data), 16 bits each.
struct DispiPorts(Arc<Vga>);

impl BusDevice for DispiPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let core = self.0.lock();
        let value = match offset {
            0 => core.dispi.index,
            _ => core.dispi.read(core.dispi.index, VIDEO_SIZE),
        };
        fill(data, &value.to_le_bytes());
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        let value = match *data {
            [low] => u16::from(low),
            [low, high, ..] => u16::from_le_bytes([low, high]),
            [] => return None,
        };
        if offset == 0 {
            self.0.lock().dispi.index = value;
        } else {
            let index = self.0.lock().dispi.index;
            self.0.write_dispi(index, value);
        }
        None
    }
}

/// The window at A0000h, where it is not shown as RAM.
struct Window(Arc<Vga>);

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read_window(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        self.0.write_window(offset, data);
        None
    }
}
