//! 2D resources: pictures on the host, and the guest memory behind them (virtio 1.2 §5.7.6.8).

use serde::{Deserialize, Serialize};

use super::protocol::Refusal;
use crate::backend::display::{BYTES_PER_PIXEL, CursorImage, Mode, Rect};
use crate::base::{Bytes, GuestAddress, GuestMemory, StateError};
use crate::virtio::Reader;

/// The largest width and height.
const MAX_SIDE: u32 = 16_384;
/// The most pieces of guest memory behind a resource: single pages of the largest resource there can be.
const MAX_RUNS: u32 = 65_536;
/// What a resource costs beside its pixels, for the limit on all of them.
const OVERHEAD: u64 = 1024;

/// The order of a pixel's bytes in memory, which is the guest's to choose; the host's is always B, G, R, A.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Bgra,
    Argb,
    Rgba,
    Abgr,
}

/// A pixel format of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Format {
    code: u32,
    order: Order,
    alpha: bool,
}

/// `enum virtio_gpu_formats`.
const FORMATS: [Format; 8] = [
    Format { code: 1, order: Order::Bgra, alpha: true },
    Format { code: 2, order: Order::Bgra, alpha: false },
    Format { code: 3, order: Order::Argb, alpha: true },
    Format { code: 4, order: Order::Argb, alpha: false },
    Format { code: 67, order: Order::Rgba, alpha: true },
    Format { code: 68, order: Order::Abgr, alpha: false },
    Format { code: 121, order: Order::Abgr, alpha: true },
    Format { code: 134, order: Order::Rgba, alpha: false },
];

impl Order {
    /// Brings pixels into the host's order, in place.
    fn convert(self, pixels: &mut [u8]) {
        let each = |convert: fn(u32) -> u32, pixels: &mut [u8]| {
            for pixel in pixels.chunks_exact_mut(BYTES_PER_PIXEL) {
                let value = u32::from_le_bytes([pixel[0], pixel[1], pixel[2], pixel[3]]);
                pixel.copy_from_slice(&convert(value).to_le_bytes());
            }
        };
        match self {
            Order::Bgra => {}
            Order::Argb => each(u32::swap_bytes, pixels),
            Order::Rgba => each(|v| v & 0xff00_ff00 | v >> 16 & 0xff | (v & 0xff) << 16, pixels),
            Order::Abgr => each(|v| v.rotate_right(8), pixels),
        }
    }
}

/// A run of guest memory behind a resource.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// Bytes of the backing before it.
    start: u64,
    address: u64,
    len: u64,
}

/// The guest memory behind a resource, in order.
#[derive(Debug, Clone, Default)]
struct Backing {
    runs: Vec<Run>,
    len: u64,
}

impl Backing {
    fn push(&mut self, address: u64, len: u64) {
        match self.runs.last_mut() {
            // Pages that follow one another are copied at once.
            Some(last) if last.address + last.len == address => last.len += len,
            _ => self.runs.push(Run { start: self.len, address, len }),
        }
        self.len += len;
    }

    /// Copies from the guest; the range is inside.
    fn read(&self, memory: &GuestMemory, mut offset: u64, mut out: &mut [u8]) -> Result<(), Refusal> {
        let mut index = self.runs.partition_point(|run| run.start + run.len <= offset);
        while !out.is_empty() {
            let run = self.runs.get(index).ok_or(Refusal::InvalidParameter)?;
            let skip = offset - run.start;
            let len = (run.len - skip).min(out.len() as u64);
            let (now, rest) = out.split_at_mut(len as usize);
            let slice = memory.slice(GuestAddress(run.address + skip), now.len());
            slice.map_err(|_| Refusal::InvalidParameter)?.copy_to(now);
            out = rest;
            offset += len;
            index += 1;
        }
        Ok(())
    }
}

/// A picture on the host.
pub(super) struct Resource {
    pub mode: Mode,
    format: Format,
    /// Rows without gaps, in the host's order.
    pub pixels: Vec<u8>,
    backing: Option<Backing>,
}

/// What a checkpoint keeps of a resource.
#[derive(Serialize, Deserialize)]
pub(super) struct ResourceState {
    id: u32,
    width: u32,
    height: u32,
    format: u32,
    pixels: Bytes,
    backing: Option<Vec<(u64, u64)>>,
}

/// What a resource of this size costs of the limit on all of them.
pub(super) fn cost(width: u32, height: u32) -> u64 {
    u64::from(width) * u64::from(height) * BYTES_PER_PIXEL as u64 + OVERHEAD
}

/// What the list of pieces behind a resource costs of it.
fn backing_cost(runs: usize) -> u64 {
    (runs * size_of::<Run>()) as u64
}

impl Resource {
    /// A black (and transparent) picture. `budget` is what may still be allocated.
    pub fn new(format: u32, width: u32, height: u32, budget: u64) -> Result<Resource, Refusal> {
        let known = FORMATS.into_iter().find(|f| f.code == format);
        let sized = (1..=MAX_SIDE).contains(&width) && (1..=MAX_SIDE).contains(&height);
        let format = known.filter(|_| sized).ok_or(Refusal::InvalidParameter)?;
        if cost(width, height) > budget {
            return Err(Refusal::OutOfMemory);
        }
        let pixels = vec![0; width as usize * height as usize * BYTES_PER_PIXEL];
        Ok(Resource { mode: Mode { width, height }, format, pixels, backing: None })
    }

    /// What it costs of the limit on all resources.
    pub fn cost(&self) -> u64 {
        let runs = self.backing.as_ref().map_or(0, |b| b.runs.len());
        cost(self.mode.width, self.mode.height) + backing_cost(runs)
    }

    /// Bytes of a row.
    pub fn stride(&self) -> usize {
        self.mode.width as usize * BYTES_PER_PIXEL
    }

    /// Whether a rectangle has pixels and all of them are inside.
    pub fn holds(&self, rect: Rect) -> bool {
        !rect.is_empty() && rect.clip(self.mode) == rect
    }

    /// Puts `count` pieces of guest memory, as the request lists them, behind the picture.
    pub fn attach(
        &mut self,
        count: u32,
        reader: &mut Reader<'_>,
        memory: &GuestMemory,
        budget: u64,
    ) -> Result<(), Refusal> {
        if self.backing.is_some() {
            return Err(Refusal::Unspecified);
        }
        if count == 0 || count > MAX_RUNS || reader.remaining() < count as usize * 16 {
            return Err(Refusal::InvalidParameter);
        }
        if backing_cost(count as usize) > budget {
            return Err(Refusal::OutOfMemory);
        }
        let mut backing = Backing::default();
        for _ in 0..count {
            let [low, high, len, _] = super::protocol::words(reader)?;
            let address = u64::from(low) | u64::from(high) << 32;
            memory.check(GuestAddress(address), len as usize).map_err(|_| Refusal::InvalidParameter)?;
            if len > 0 {
                backing.push(address, u64::from(len));
            }
        }
        backing.runs.shrink_to_fit();
        self.backing = Some(backing);
        Ok(())
    }

    /// Takes the guest memory away; false if there was none.
    pub fn detach(&mut self) -> bool {
        self.backing.take().is_some()
    }

    /// Copies a rectangle from guest memory, where it starts at `offset` and rows are as long as the picture's.
    pub fn transfer(&mut self, rect: Rect, offset: u64, memory: &GuestMemory) -> Result<(), Refusal> {
        let backing = self.backing.as_ref().ok_or(Refusal::InvalidResource)?;
        let inside = !rect.is_empty() && rect.clip(self.mode) == rect;
        let stride = self.mode.width as usize * BYTES_PER_PIXEL;
        let (left, width) = (rect.x as usize * BYTES_PER_PIXEL, rect.width as usize * BYTES_PER_PIXEL);
        let rows = rect.height as usize;
        let end = offset.checked_add((stride * rows.saturating_sub(1) + width) as u64);
        if !inside || end.is_none_or(|end| end > backing.len) {
            return Err(Refusal::InvalidParameter);
        }
        let first = rect.y as usize * stride;
        if width == stride {
            let all = &mut self.pixels[first..first + rows * stride];
            backing.read(memory, offset, all)?;
            self.format.order.convert(all);
            return Ok(());
        }
        for row in 0..rows {
            let out = &mut self.pixels[first + row * stride + left..][..width];
            backing.read(memory, offset + (row * stride) as u64, out)?;
            self.format.order.convert(out);
        }
        Ok(())
    }

    /// The picture as a pointer's: with an alpha channel that means something.
    pub fn cursor_image(&self) -> CursorImage {
        let mut pixels = self.pixels.clone();
        if !self.format.alpha {
            pixels.chunks_exact_mut(BYTES_PER_PIXEL).for_each(|pixel| pixel[3] = 0xff);
        }
        CursorImage { width: self.mode.width, height: self.mode.height, pixels }
    }

    pub fn save(&self, id: u32) -> ResourceState {
        let Resource { mode: Mode { width, height }, format, pixels, backing } = self;
        let runs = |b: &Backing| b.runs.iter().map(|run| (run.address, run.len)).collect();
        ResourceState {
            id,
            width: *width,
            height: *height,
            format: format.code,
            pixels: Bytes(pixels.clone()),
            backing: backing.as_ref().map(runs),
        }
    }

    /// The resource and its id. `budget` is what may still be allocated.
    pub fn restore(state: ResourceState, budget: u64) -> Result<(u32, Resource), StateError> {
        let ResourceState { id, width, height, format, pixels, backing } = state;
        let wrong = |why: &str| StateError::invalid("gpu", format!("resource {id} {why}"));
        let mut resource = Resource::new(format, width, height, budget).map_err(|_| wrong("is impossible"))?;
        if id == 0 || pixels.0.len() != resource.pixels.len() {
            return Err(wrong("has another size than its pixels"));
        }
        resource.pixels = pixels.0;
        if let Some(runs) = backing {
            let sane = |&(address, len): &(u64, u64)| len > 0 && address.checked_add(len).is_some();
            let total = runs.iter().try_fold(0u64, |sum, run| sum.checked_add(run.1));
            if runs.len() > MAX_RUNS as usize || !runs.iter().all(sane) || total.is_none() {
                return Err(wrong("has an impossible list of guest memory"));
            }
            let mut backing = Backing::default();
            runs.iter().for_each(|&(address, len)| backing.push(address, len));
            resource.backing = Some(backing);
        }
        Ok((id, resource))
    }
}
