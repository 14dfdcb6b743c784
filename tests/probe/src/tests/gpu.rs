//! virtio-gpu 2D (virtio 1.2 §5.7): display information, EDID, resources, scanout, cursor, errors.

use crate::dma::Dma;
use crate::drivers::gpu::{CURSOR_SIDE, FEATURE_EDID, FORMAT_BGRA, FORMAT_BGRX, Gpu, Rect, command, response};
use crate::drivers::virtio::kind;
use crate::machine::Machine;
use crate::report::{Failure, Outcome};
use crate::text::Text;
use crate::{ensure, fail, text, trap};

const SCREEN: u32 = 1;
const CURSOR: u32 = 2;
/// Backing in so many pieces: a driver's memory is scattered.
const ENTRIES: usize = 600;

/// The whole life of a picture, then everything a device must refuse.
pub fn test(machine: &Machine, index: usize) -> Outcome {
    let function = machine.pci.virtio(kind::GPU).nth(index).ok_or(Failure::Absent)?;
    let mut gpu = Gpu::open(function)?;
    let config = gpu.device.config()?;
    let scanouts = config.read32(8);
    ensure!((1..=16).contains(&scanouts), "{scanouts} scanouts");
    let Some(display) = gpu.display()? else { fail!("the first scanout is disabled") };
    ensure!(
        (1..=16384).contains(&display.width) && (1..=16384).contains(&display.height),
        "the first scanout is {}x{}",
        display.width,
        display.height
    );
    let edid = if gpu.device.has(FEATURE_EDID) { parse_edid(gpu.edid()?)? } else { text!("no EDID") };
    let interrupts = trap::count(gpu.vector());
    picture(&mut gpu, display)?;
    errors(&mut gpu)?;
    let interrupts = trap::count(gpu.vector()).wrapping_sub(interrupts);
    ensure!(gpu.vector() == 0 || interrupts > 0, "no interrupt came for any command");
    gpu.device.reset()?;
    Ok(text!(
        "{scanouts} scanouts, {}x{}, {edid}, {ENTRIES} backing entries, cursor, {interrupts} interrupts",
        display.width,
        display.height
    ))
}

/// Header, checksum, and the preferred mode (VESA E-EDID 1.4).
fn parse_edid(edid: &[u8]) -> Outcome<Text> {
    let Some(base) = edid.first_chunk::<128>() else { fail!("an EDID of {} bytes", edid.len()) };
    ensure!(base[..8] == [0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0], "the EDID's header is wrong");
    for (number, block) in edid.chunks(128).enumerate().take(1 + usize::from(base[126])) {
        let sum = block.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
        ensure!(sum == 0, "the checksum of EDID block {number} is wrong");
    }
    let (width, height) = preferred_mode(base);
    Ok(text!("EDID {}.{} prefers {width}x{height}", base[18], base[19]))
}

/// Width and height of the first detailed timing.
fn preferred_mode(base: &[u8; 128]) -> (u32, u32) {
    let timing = &base[54..72];
    let number = |low: u8, high: u8| u32::from(low) | u32::from(high >> 4) << 8;
    (number(timing[2], timing[4]), number(timing[5], timing[7]))
}

fn picture(gpu: &mut Gpu, display: Rect) -> Outcome<()> {
    let (width, height) = (display.width.min(1920), display.height.min(1080));
    let memory = Dma::new((width * height * 4) as usize);
    for (index, pixel) in memory.words_mut().iter_mut().enumerate() {
        let (x, y) = (index as u32 % width, index as u32 / width);
        *pixel = (x * 255 / width) << 16 | (y * 255 / height) << 8 | 0x40;
    }
    gpu.create(SCREEN, FORMAT_BGRX, width, height, &memory, ENTRIES)?;
    let whole = Rect::of_size(width, height);
    gpu.set_scanout(whole, SCREEN)?;
    gpu.update(SCREEN, width, whole)?;
    // A part at an odd place, under a fence.
    let part = Rect { x: width / 3, y: height / 3, width: width / 5 + 1, height: height / 7 + 1 };
    gpu.transfer(SCREEN, width, part)?;
    let body = [part.x, part.y, part.width, part.height, SCREEN, 0];
    let answer = gpu.fenced(command::RESOURCE_FLUSH, &body, 0x1234_5678_9abc)?;
    ensure!(answer == response::OK, "a fenced flush was answered with {answer:#x}");
    cursor(gpu)?;
    gpu.set_scanout(Rect::default(), 0)?;
    gpu.expect(command::DETACH_BACKING, &[SCREEN, 0])?;
    gpu.destroy(SCREEN)
}

fn cursor(gpu: &mut Gpu) -> Outcome<()> {
    let memory = Dma::new((CURSOR_SIDE * CURSOR_SIDE * 4) as usize);
    for (index, pixel) in memory.words_mut().iter_mut().enumerate() {
        let (x, y) = (index as u32 % CURSOR_SIDE, index as u32 / CURSOR_SIDE);
        *pixel = if x + y < CURSOR_SIDE / 2 { 0xffff_8000 } else { 0 };
    }
    gpu.create(CURSOR, FORMAT_BGRA, CURSOR_SIDE, CURSOR_SIDE, &memory, 1)?;
    gpu.transfer(CURSOR, CURSOR_SIDE, Rect::of_size(CURSOR_SIDE, CURSOR_SIDE))?;
    gpu.cursor(command::UPDATE_CURSOR, CURSOR, 10, 10)?;
    for step in 0..8 {
        gpu.cursor(command::MOVE_CURSOR, 0, 10 + step * 10, 10 + step * 5)?;
    }
    gpu.cursor(command::UPDATE_CURSOR, 0, 0, 0)?;
    gpu.destroy(CURSOR)
}

/// What makes no sense is answered with an error, and the device lives on.
fn errors(gpu: &mut Gpu) -> Outcome<()> {
    let nowhere = 0x00de_ad00;
    let cases: [(&str, u32, &[u32]); 8] = [
        ("a resource with id 0", command::RESOURCE_CREATE_2D, &[0, FORMAT_BGRX, 64, 64]),
        ("an unknown format", command::RESOURCE_CREATE_2D, &[7, 9999, 64, 64]),
        ("a flush of no resource", command::RESOURCE_FLUSH, &[0, 0, 1, 1, nowhere, 0]),
        ("a transfer to no resource", command::TRANSFER_TO_HOST_2D, &[0, 0, 1, 1, 0, 0, nowhere, 0]),
        ("a scanout that is not there", command::SET_SCANOUT, &[0, 0, 64, 64, 99, 0]),
        ("a scanout of no resource", command::SET_SCANOUT, &[0, 0, 64, 64, 0, nowhere]),
        ("dropping no resource", command::RESOURCE_UNREF, &[nowhere, 0]),
        ("an unknown command", 0x0fff, &[]),
    ];
    for (what, command, body) in cases {
        let answer = gpu.command(command, body)?;
        ensure!(answer >= response::ERRORS, "{what} was answered with {answer:#x}");
    }
    // Rectangles that leave the resource, in ways that overflow.
    let memory = Dma::new(64 * 64 * 4);
    gpu.create(3, FORMAT_BGRX, 64, 64, &memory, 1)?;
    for rect in [[60, 0, 8, 8], [0, 60, 8, 8], [u32::MAX, 0, 2, 2], [0, 1, 64, u32::MAX]] {
        let [x, y, width, height] = rect;
        let answer = gpu.command(command::TRANSFER_TO_HOST_2D, &[x, y, width, height, 0, 0, 3, 0])?;
        ensure!(answer >= response::ERRORS, "a transfer to {rect:?} of 64x64 was answered with {answer:#x}");
    }
    let answer = gpu.command(command::RESOURCE_CREATE_2D, &[3, FORMAT_BGRX, 64, 64])?;
    ensure!(answer >= response::ERRORS, "a second resource with the same id was answered with {answer:#x}");
    gpu.destroy(3)?;
    gpu.display()?;
    Ok(())
}
