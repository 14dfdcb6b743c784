//! virtio-gpu, 2D (virtio 1.2 §5.7).

use crate::dma::Dma;
use crate::drivers::pci::Function;
use crate::drivers::virtio::{Device, PATIENCE_MICROS, Queue, Segment};
use crate::report::Outcome;
use crate::{ensure, fail, time, trap};

/// EDID is offered.
pub const FEATURE_EDID: u64 = 1 << 1;

/// Commands.
pub mod command {
    /// Scanouts and their sizes.
    pub const GET_DISPLAY_INFO: u32 = 0x100;
    /// New resource.
    pub const RESOURCE_CREATE_2D: u32 = 0x101;
    /// Drops a resource.
    pub const RESOURCE_UNREF: u32 = 0x102;
    /// Shows a resource on a scanout.
    pub const SET_SCANOUT: u32 = 0x103;
    /// Shows what changed.
    pub const RESOURCE_FLUSH: u32 = 0x104;
    /// Copies from guest memory into the resource.
    pub const TRANSFER_TO_HOST_2D: u32 = 0x105;
    /// Gives a resource its memory.
    pub const ATTACH_BACKING: u32 = 0x106;
    /// Takes it away.
    pub const DETACH_BACKING: u32 = 0x107;
    /// Reads a scanout's EDID.
    pub const GET_EDID: u32 = 0x10a;
    /// New cursor image and position.
    pub const UPDATE_CURSOR: u32 = 0x300;
    /// New cursor position.
    pub const MOVE_CURSOR: u32 = 0x301;
}

/// Answers.
pub mod response {
    /// Done.
    pub const OK: u32 = 0x1100;
    /// Scanouts.
    pub const OK_DISPLAY_INFO: u32 = 0x1101;
    /// EDID.
    pub const OK_EDID: u32 = 0x1104;
    /// First error number.
    pub const ERRORS: u32 = 0x1200;
}

/// 32 bits per pixel, blue first, no alpha; and the same with alpha, for cursors.
pub const FORMAT_BGRX: u32 = 2;
/// With alpha.
pub const FORMAT_BGRA: u32 = 1;
/// Cursors are this wide and high.
pub const CURSOR_SIDE: u32 = 64;

const HEADER_BYTES: usize = 24;
const REQUEST_BYTES: usize = 16 * 1024;
/// Room for a posted command, and how many may be on their way.
const POST_BYTES: usize = 64;
const POSTS: usize = 24;
const DISPLAY_INFO_BYTES: usize = HEADER_BYTES + 16 * 24;
const EDID_BYTES: usize = HEADER_BYTES + 8 + 1024;
/// Configuration: what changed, and the register that acknowledges it.
const EVENTS_READ: u64 = 0;
const EVENTS_CLEAR: u64 = 4;
const EVENT_DISPLAY: u32 = 1;

/// A rectangle in pixels.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Rect {
    /// Left.
    pub x: u32,
    /// Top.
    pub y: u32,
    /// Width.
    pub width: u32,
    /// Height.
    pub height: u32,
}

impl Rect {
    /// A rectangle at the origin.
    pub fn of_size(width: u32, height: u32) -> Rect {
        Rect { x: 0, y: 0, width, height }
    }
}

/// A started GPU.
pub struct Gpu {
    /// The device.
    pub device: Device,
    control: Queue,
    cursor: Queue,
    request: Dma,
    answer: Dma,
    cursor_request: Dma,
    posts: Dma,
    post_answers: Dma,
    posted: usize,
}

impl Gpu {
    /// Starts the device at a function.
    pub fn open(function: &Function) -> Outcome<Gpu> {
        let device = Device::open(function, FEATURE_EDID)?;
        let control = device.queue(0, 64)?;
        let cursor = device.queue(1, 16)?;
        device.start()?;
        Ok(Gpu {
            device,
            control,
            cursor,
            request: Dma::new(REQUEST_BYTES),
            answer: Dma::new(EDID_BYTES),
            cursor_request: Dma::new(56),
            posts: Dma::new(POST_BYTES * POSTS),
            post_answers: Dma::new(HEADER_BYTES * POSTS),
            posted: 0,
        })
    }

    /// The interrupt vector of the control queue.
    pub fn vector(&self) -> u8 {
        self.control.vector
    }

    fn header(request: &Dma, command: u32, fence: u64) {
        request.write(0, command);
        request.write(4, u32::from(fence != 0));
        request.write(8, fence);
        request.write(16, 0u64);
    }

    /// Sends a command with a body of 32-bit words; returns the type of the answer.
    pub fn command(&mut self, command: u32, body: &[u32]) -> Outcome<u32> {
        self.fenced(command, body, 0)
    }

    /// The same with a fence, which the answer must repeat.
    pub fn fenced(&mut self, command: u32, body: &[u32], fence: u64) -> Outcome<u32> {
        let length = HEADER_BYTES + body.len() * 4;
        let request = self.request.part(0, length);
        Gpu::header(&request, command, fence);
        for (index, word) in body.iter().enumerate() {
            request.write(HEADER_BYTES + index * 4, *word);
        }
        self.send(&request, fence)
    }

    fn send(&mut self, request: &Dma, fence: u64) -> Outcome<u32> {
        self.answer.write(0, 0u32);
        let written = self.control.request(&[Segment::read(request), Segment::write(&self.answer)])?;
        ensure!(written as usize >= HEADER_BYTES, "an answer of {written} bytes has no header");
        ensure!(
            fence == 0 || (self.answer.read::<u32>(4) & 1 == 1 && self.answer.read::<u64>(8) == fence),
            "the answer does not carry fence {fence}"
        );
        Ok(self.answer.read(0))
    }

    /// A command that must succeed.
    pub fn expect(&mut self, command: u32, body: &[u32]) -> Outcome<()> {
        match self.command(command, body)? {
            response::OK => Ok(()),
            other => fail!("command {command:#x} was answered with {other:#x}"),
        }
    }

    /// Queues a command with a short body; nothing is sent before [`Gpu::finish`].
    fn post(&mut self, command: u32, body: &[u32]) {
        let length = HEADER_BYTES + body.len() * 4;
        let request = self.posts.part(self.posted * POST_BYTES, length);
        Gpu::header(&request, command, 0);
        for (index, word) in body.iter().enumerate() {
            request.write(HEADER_BYTES + index * 4, *word);
        }
        let answer = self.post_answers.part(self.posted * HEADER_BYTES, HEADER_BYTES);
        answer.write(0, 0u32);
        self.control.push(&[Segment::read(&request), Segment::write(&answer)]);
        self.posted += 1;
    }

    /// Sends what was posted and waits for all of it, by `wait`, which is called while there is nothing to do.
    fn finish(&mut self, mut wait: impl FnMut(u32)) -> Outcome<()> {
        let posted = core::mem::take(&mut self.posted);
        self.control.notify();
        let deadline = time::micros() + PATIENCE_MICROS;
        let mut done = 0;
        while done < posted {
            let seen = trap::total();
            if self.control.pop().is_some() {
                done += 1;
            } else {
                ensure!(time::micros() < deadline, "{} of {posted} commands have no answer", posted - done);
                wait(seen);
            }
        }
        for index in 0..posted {
            let answer: u32 = self.post_answers.read(index * HEADER_BYTES);
            ensure!(answer == response::OK, "an update was answered with {answer:#x}");
        }
        Ok(())
    }

    /// Copies and shows rectangles of a resource that is `stride` pixels wide, all with one doorbell. `wait` is called
    /// with `trap::total` as it was before the last look, while the device is busy.
    pub fn update_all(
        &mut self,
        id: u32,
        stride: u32,
        rects: impl Iterator<Item = Rect>,
        wait: impl FnMut(u32),
    ) -> Outcome<()> {
        for rect in rects.take(POSTS / 2) {
            let offset = u64::from(rect.y * stride + rect.x) * 4;
            let body = [rect.x, rect.y, rect.width, rect.height, offset as u32, (offset >> 32) as u32, id, 0];
            self.post(command::TRANSFER_TO_HOST_2D, &body);
            self.post(command::RESOURCE_FLUSH, &[rect.x, rect.y, rect.width, rect.height, id, 0]);
        }
        self.finish(wait)
    }

    /// Size of the first scanout, if it is enabled.
    pub fn display(&mut self) -> Outcome<Option<Rect>> {
        let answer = self.command(command::GET_DISPLAY_INFO, &[])?;
        ensure!(answer == response::OK_DISPLAY_INFO, "GET_DISPLAY_INFO was answered with {answer:#x}");
        let bytes = self.answer.part(0, DISPLAY_INFO_BYTES);
        let [x, y, width, height, enabled]: [u32; 5] =
            core::array::from_fn(|index| bytes.read(HEADER_BYTES + index * 4));
        Ok((enabled != 0).then_some(Rect { x, y, width, height }))
    }

    /// The EDID of the first scanout.
    pub fn edid(&mut self) -> Outcome<&[u8]> {
        let answer = self.command(command::GET_EDID, &[0, 0])?;
        ensure!(answer == response::OK_EDID, "GET_EDID was answered with {answer:#x}");
        let size = self.answer.read::<u32>(HEADER_BYTES) as usize;
        ensure!((128..=1024).contains(&size) && size.is_multiple_of(128), "an EDID of {size} bytes");
        Ok(&self.answer.bytes()[HEADER_BYTES + 8..HEADER_BYTES + 8 + size])
    }

    /// Creates a resource backed by `memory`, handed to the device in `entries` pieces (it need not divide evenly).
    pub fn create(
        &mut self,
        id: u32,
        format: u32,
        width: u32,
        height: u32,
        memory: &Dma,
        entries: usize,
    ) -> Outcome<()> {
        self.expect(command::RESOURCE_CREATE_2D, &[id, format, width, height])?;
        let step = memory.len().div_ceil(entries).next_multiple_of(4);
        let count = memory.len().div_ceil(step);
        let length = HEADER_BYTES + 8 + 16 * count;
        ensure!(length <= REQUEST_BYTES, "{count} backing entries are more than this driver sends");
        let request = self.request.part(0, length);
        Gpu::header(&request, command::ATTACH_BACKING, 0);
        request.write(HEADER_BYTES, id);
        request.write(HEADER_BYTES + 4, count as u32);
        for index in 0..count {
            let at = HEADER_BYTES + 8 + 16 * index;
            let piece = memory.part(index * step, step.min(memory.len() - index * step));
            request.write(at, piece.address());
            request.write(at + 8, piece.len() as u32);
            request.write(at + 12, 0u32);
        }
        match self.send(&request, 0)? {
            response::OK => Ok(()),
            other => fail!("ATTACH_BACKING with {count} entries was answered with {other:#x}"),
        }
    }

    /// Drops a resource.
    pub fn destroy(&mut self, id: u32) -> Outcome<()> {
        self.expect(command::RESOURCE_UNREF, &[id, 0])
    }

    /// Shows a resource, or nothing (id 0), on the first scanout.
    pub fn set_scanout(&mut self, rect: Rect, id: u32) -> Outcome<()> {
        self.expect(command::SET_SCANOUT, &[rect.x, rect.y, rect.width, rect.height, 0, id])
    }

    /// Copies a rectangle of a resource that is `stride` pixels wide, and shows it.
    pub fn update(&mut self, id: u32, stride: u32, rect: Rect) -> Outcome<()> {
        self.transfer(id, stride, rect)?;
        self.expect(command::RESOURCE_FLUSH, &[rect.x, rect.y, rect.width, rect.height, id, 0])
    }

    /// Copies a rectangle.
    pub fn transfer(&mut self, id: u32, stride: u32, rect: Rect) -> Outcome<()> {
        let offset = u64::from(rect.y * stride + rect.x) * 4;
        let body = [rect.x, rect.y, rect.width, rect.height, offset as u32, (offset >> 32) as u32, id, 0];
        self.expect(command::TRANSFER_TO_HOST_2D, &body)
    }

    /// Sets or moves the cursor; there is no answer but the completion.
    pub fn cursor(&mut self, command: u32, id: u32, x: u32, y: u32) -> Outcome<()> {
        let request = self.cursor_request;
        Gpu::header(&request, command, 0);
        for (index, word) in [0, x, y, 0, id, 0, 0, 0].into_iter().enumerate() {
            request.write(HEADER_BYTES + index * 4, word);
        }
        self.cursor.request(&[Segment::read(&request)])?;
        Ok(())
    }

    /// Whether the display has changed since the last call.
    pub fn display_changed(&self) -> Outcome<bool> {
        let config = self.device.config()?;
        let events = config.read32(EVENTS_READ);
        if events & EVENT_DISPLAY != 0 {
            config.write32(EVENTS_CLEAR, EVENT_DISPLAY);
        }
        Ok(events & EVENT_DISPLAY != 0)
    }
}
