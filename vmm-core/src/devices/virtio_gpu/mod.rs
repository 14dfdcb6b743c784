//! virtio graphics device, 2D (virtio 1.2 §5.7): pictures in guest memory are transferred to the host, put on the
//! monitor, and flushed when they change. One scanout, an EDID, and a pointer.

#[cfg(test)]
mod handover_tests;
mod protocol;
mod resource;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use crate::backend::display::{Cursor, CursorImage, Frame, Mode, Rect};
use crate::backend::monitor::{Monitor, Painter};
use crate::base::{Bytes, GuestMemory, SavedState, StateError};
use crate::virtio::{Chain, ConfigSpace, Device, Fault, Info, Io, Reader, Role, Source, id};
use protocol::{Answer, Header, Refusal, command};
use resource::{Resource, ResourceState};

/// The device can tell of its monitor.
const FEATURE_EDID: u64 = 1 << 1;
/// Configuration register bit: the display changed.
const EVENT_DISPLAY: u32 = 1;

const CONTROL: usize = 0;
const QUEUE_SIZES: [u16; 2] = [256, 16];
/// The only scanout.
const SCANOUT: u32 = 0;
/// The most host memory that the guest can have allocated for its resources: six pictures of 4K, and some.
const MEMORY_LIMIT: u64 = 256 << 20;
/// The smallest picture that can be shown.
const SMALLEST: u32 = 16;
/// Width and height of a pointer's picture.
const CURSOR_SIDE: u32 = 64;

const RESIZED: u32 = 0;

/// VGA-class display controller.
const CLASS: [u8; 3] = [3, 0, 0];

/// The configuration registers: events, which the driver clears, and constants.
#[derive(Default)]
struct Registers {
    events: AtomicU32,
    generation: AtomicU32,
}

impl Registers {
    fn raise(&self, event: u32) {
        self.events.fetch_or(event, Ordering::AcqRel);
        self.generation.fetch_add(1, Ordering::Release);
    }
}

impl ConfigSpace for Registers {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&self.events.load(Ordering::Acquire).to_le_bytes());
        // One scanout, no capability sets.
        bytes[8] = 1;
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get(offset as usize + i).copied().unwrap_or(0);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // events_clear
        for (i, &byte) in data.iter().enumerate() {
            if let Some(shift) = (offset + i as u64).checked_sub(4).filter(|&at| at < 4) {
                self.events.fetch_and(!(u32::from(byte) << (8 * shift)), Ordering::AcqRel);
            }
        }
    }

    fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire) as u8
    }

    fn reset(&self) {
        self.events.store(0, Ordering::Release);
    }
}

/// A part of a resource on the monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shown {
    resource: u32,
    rect: Rect,
}

impl Shown {
    fn mode(self) -> Mode {
        Mode { width: self.rect.width, height: self.rect.height }
    }

    /// What of a resource's rectangle is on the monitor, in the monitor's pixels.
    fn damage(self, rect: Rect) -> Rect {
        let (left, top) = (rect.x.max(self.rect.x), rect.y.max(self.rect.y));
        let right = (rect.x + rect.width).min(self.rect.x + self.rect.width);
        let bottom = (rect.y + rect.height).min(self.rect.y + self.rect.height);
        Rect {
            x: left - self.rect.x,
            y: top - self.rect.y,
            width: right.saturating_sub(left),
            height: bottom.saturating_sub(top),
        }
    }
}

/// The device.
pub struct Gpu {
    monitor: Monitor,
    config: Arc<Registers>,
    resources: BTreeMap<u32, Resource>,
    shown: Option<Shown>,
    /// What is shown is not what the monitor has yet.
    stale: bool,
    cursor: Cursor,
    /// The mode that the driver last heard of.
    told: Option<Mode>,
}

/// What a checkpoint keeps of the device.
#[derive(Serialize, Deserialize)]
pub struct State {
    resources: Vec<ResourceState>,
    /// Resource, x, y, width, height.
    shown: Option<[u32; 5]>,
    cursor: CursorState,
    events: u32,
    told: Option<(u32, u32)>,
}

#[derive(Serialize, Deserialize)]
struct CursorState {
    visible: bool,
    place: (i32, i32),
    hot: (u32, u32),
    image: Option<Bytes>,
}

impl SavedState for State {
    const VERSION: u32 = 1;
}

impl Gpu {
    /// A device that is plugged into `monitor`.
    pub fn new(monitor: Monitor) -> Gpu {
        Gpu {
            monitor,
            config: Arc::default(),
            resources: BTreeMap::new(),
            shown: None,
            stale: false,
            cursor: Cursor::default(),
            told: None,
        }
    }

    fn budget(&self) -> u64 {
        MEMORY_LIMIT.saturating_sub(self.resources.values().map(Resource::cost).sum())
    }

    fn resource(&mut self, id: u32) -> Result<&mut Resource, Refusal> {
        self.resources.get_mut(&id).ok_or(Refusal::InvalidResource)
    }

    /// Executes a request and writes its answer, as far as there is room for one.
    fn serve(&mut self, chain: Chain, memory: &GuestMemory) -> Result<(), Fault> {
        let mut reader = chain.reader();
        let header = Header::read(&mut reader).unwrap_or_default();
        let outcome = self.execute(header.kind, &mut reader, memory);
        let kind = outcome.as_ref().map_or_else(|&refusal| refusal as u32, Answer::kind);
        let mut writer = chain.writer();
        writer.write(&header.answer(kind))?;
        if let Ok(answer) = outcome {
            writer.write(&answer.body())?;
        }
        let written = writer.written();
        chain.complete(written);
        Ok(())
    }

    fn execute(&mut self, kind: u32, reader: &mut Reader<'_>, memory: &GuestMemory) -> Result<Answer, Refusal> {
        match kind {
            command::GET_DISPLAY_INFO => {
                let mode = self.monitor.preferred();
                self.told = Some(mode);
                return Ok(Answer::DisplayInfo(mode.width, mode.height));
            }
            command::GET_EDID => {
                let [scanout] = protocol::words(reader)?;
                if scanout != SCANOUT {
                    return Err(Refusal::InvalidScanout);
                }
                return Ok(Answer::Edid(self.monitor.edid()));
            }
            command::RESOURCE_CREATE_2D => {
                let [id, format, width, height] = protocol::words(reader)?;
                if id == 0 || self.resources.contains_key(&id) {
                    return Err(Refusal::InvalidResource);
                }
                self.resources.insert(id, Resource::new(format, width, height, self.budget())?);
            }
            command::RESOURCE_UNREF => {
                let [id] = protocol::words(reader)?;
                self.resources.remove(&id).ok_or(Refusal::InvalidResource)?;
                if self.shown.is_some_and(|shown| shown.resource == id) {
                    self.shown = None;
                    self.stale = true;
                }
            }
            command::SET_SCANOUT => {
                let rect = protocol::rect(reader)?;
                let [scanout, id] = protocol::words(reader)?;
                self.set_scanout(scanout, id, rect)?;
            }
            command::RESOURCE_FLUSH => {
                let rect = protocol::rect(reader)?;
                let [id] = protocol::words(reader)?;
                if !self.resource(id)?.holds(rect) {
                    return Err(Refusal::InvalidParameter);
                }
                self.flush(id, rect);
            }
            command::TRANSFER_TO_HOST_2D => {
                let rect = protocol::rect(reader)?;
                let [low, high, id] = protocol::words(reader)?;
                let offset = u64::from(low) | u64::from(high) << 32;
                self.resource(id)?.transfer(rect, offset, memory)?;
            }
            command::RESOURCE_ATTACH_BACKING => {
                let [id, count] = protocol::words(reader)?;
                let budget = self.budget();
                self.resource(id)?.attach(count, reader, memory, budget)?;
            }
            command::RESOURCE_DETACH_BACKING => {
                let [id] = protocol::words(reader)?;
                if !self.resource(id)?.detach() {
                    return Err(Refusal::InvalidResource);
                }
            }
            command::UPDATE_CURSOR | command::MOVE_CURSOR => self.set_cursor(kind, reader)?,
            _ => return Err(Refusal::Unspecified),
        }
        Ok(Answer::Done)
    }

    fn set_scanout(&mut self, scanout: u32, id: u32, rect: Rect) -> Result<(), Refusal> {
        if scanout != SCANOUT {
            return Err(Refusal::InvalidScanout);
        }
        let shown = match id {
            0 => None,
            _ => {
                let fits = self.resource(id)?.holds(rect) && rect.width >= SMALLEST && rect.height >= SMALLEST;
                Some(Shown { resource: id, rect }).filter(|_| fits).ok_or(Refusal::InvalidParameter).map(Some)?
            }
        };
        self.stale |= self.shown != shown;
        self.shown = shown;
        Ok(())
    }

    fn flush(&mut self, id: u32, rect: Rect) {
        let Some(shown) = self.shown.filter(|shown| shown.resource == id) else { return };
        if self.stale {
            return self.show();
        }
        let damage = shown.damage(rect);
        if !damage.is_empty()
            && let Some(frame) = self.frame(shown)
        {
            self.monitor.paint(Painter::Gpu, |sink| sink.present(SCANOUT, frame, damage));
        }
    }

    fn frame(&self, shown: Shown) -> Option<Frame<'_>> {
        let resource = self.resources.get(&shown.resource)?;
        let stride = resource.stride();
        let start = shown.rect.y as usize * stride + shown.rect.x as usize * crate::backend::display::BYTES_PER_PIXEL;
        Some(Frame { mode: shown.mode(), stride, pixels: resource.pixels.get(start..)? })
    }

    /// Puts all of what is to be shown on the monitor. The first picture takes the monitor from the VGA.
    fn show(&mut self) {
        self.stale = false;
        let frame = self.shown.and_then(|shown| self.frame(shown));
        if frame.is_some() {
            self.monitor.give_to(Painter::Gpu);
        }
        self.monitor.paint(Painter::Gpu, |sink| {
            sink.mode(SCANOUT, frame.map(|f| f.mode));
            if let Some(frame) = frame {
                sink.present(SCANOUT, frame, Rect::full(frame.mode));
            }
        });
    }

    /// UPDATE_CURSOR and MOVE_CURSOR: `struct virtio_gpu_update_cursor` both.
    fn set_cursor(&mut self, kind: u32, reader: &mut Reader<'_>) -> Result<(), Refusal> {
        let [scanout, x, y, _, id, hot_x, hot_y] = protocol::words(reader)?;
        if scanout != SCANOUT {
            return Err(Refusal::InvalidScanout);
        }
        if kind == command::UPDATE_CURSOR {
            self.cursor.visible = false;
            self.cursor.image = None;
            if id != 0 {
                let resource = self.resource(id)?;
                let fits = resource.mode == Mode { width: CURSOR_SIDE, height: CURSOR_SIDE };
                if !fits || hot_x >= CURSOR_SIDE || hot_y >= CURSOR_SIDE {
                    return Err(Refusal::InvalidParameter);
                }
                let image = Arc::new(resource.cursor_image());
                self.cursor = Cursor { visible: true, hot_x, hot_y, image: Some(image), ..self.cursor };
            }
        }
        // The driver gives the picture's corner.
        self.cursor.x = (x as i32).saturating_add(self.cursor.hot_x as i32);
        self.cursor.y = (y as i32).saturating_add(self.cursor.hot_y as i32);
        self.show_cursor();
        Ok(())
    }

    fn show_cursor(&self) {
        self.monitor.paint(Painter::Gpu, |sink| sink.cursor(SCANOUT, self.cursor.clone()));
    }

    /// Tells the driver if the monitor would like another mode than it knows of.
    fn announce(&self, io: &mut Io<'_>) {
        if self.told.is_some_and(|told| told != self.monitor.preferred()) {
            self.config.raise(EVENT_DISPLAY);
            io.config_changed();
        }
    }
}

impl Device for Gpu {
    const INFO: Info = Info::new(id::GPU, "gpu", Role::Gpu).class(CLASS);
    type State = State;

    fn features(&self) -> u64 {
        FEATURE_EDID
    }

    fn queues(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        self.config.clone()
    }

    fn start(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        if self.shown.is_some() {
            self.show();
            self.show_cursor();
        }
        self.announce(io);
        Ok(())
    }

    fn on_queue(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Fault> {
        while let Some(chain) = io.pop(queue)? {
            self.serve(chain, io.memory())?;
        }
        // A new scanout whose flush has not come, or never will.
        if queue == CONTROL && self.stale {
            self.show();
        }
        Ok(())
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { id: RESIZED, fd: self.monitor.resized() }]
    }

    fn on_source(&mut self, _id: u32, io: &mut Io<'_>) -> Result<(), Fault> {
        self.announce(io);
        Ok(())
    }

    fn reset(&mut self) {
        self.resources.clear();
        self.shown = None;
        self.stale = false;
        self.told = None;
        self.cursor = Cursor::default();
        self.show_cursor();
        self.monitor.give_to(Painter::Vga);
    }

    fn save(&self) -> State {
        let Gpu { monitor: _, config, resources, shown, stale: _, cursor, told } = self;
        let Cursor { visible, x, y, hot_x, hot_y, image } = cursor;
        State {
            resources: resources.iter().map(|(&id, resource)| resource.save(id)).collect(),
            shown: shown.map(|Shown { resource, rect: Rect { x, y, width, height } }| [resource, x, y, width, height]),
            cursor: CursorState {
                visible: *visible,
                place: (*x, *y),
                hot: (*hot_x, *hot_y),
                image: image.as_ref().map(|image| Bytes(image.pixels.clone())),
            },
            events: config.events.load(Ordering::Acquire),
            told: told.map(|mode| (mode.width, mode.height)),
        }
    }

    fn restore(&mut self, state: State) -> Result<(), StateError> {
        let State { resources, shown, cursor, events, told } = state;
        for resource in resources {
            let (id, resource) = Resource::restore(resource, self.budget())?;
            if self.resources.insert(id, resource).is_some() {
                return Err(StateError::invalid("gpu", format!("it has resource {id} twice")));
            }
        }
        if let Some([id, x, y, width, height]) = shown {
            self.set_scanout(SCANOUT, id, Rect { x, y, width, height })
                .map_err(|_| StateError::invalid("gpu", "it shows a picture that it has not"))?;
        }
        let CursorState { visible, place: (x, y), hot: (hot_x, hot_y), image } = cursor;
        let side = CURSOR_SIDE as usize;
        if hot_x >= CURSOR_SIDE || hot_y >= CURSOR_SIDE || image.as_ref().is_some_and(|i| i.0.len() != side * side * 4)
        {
            return Err(StateError::invalid("gpu", "its pointer is impossible"));
        }
        let picture =
            |pixels: Bytes| Arc::new(CursorImage { width: CURSOR_SIDE, height: CURSOR_SIDE, pixels: pixels.0 });
        self.cursor = Cursor { visible, x, y, hot_x, hot_y, image: image.map(picture) };
        self.config.events.store(events, Ordering::Release);
        self.told = told.map(|(width, height)| Mode { width, height });
        Ok(())
    }
}
