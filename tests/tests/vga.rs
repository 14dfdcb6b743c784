//! The VGA as programs of its time use it: a boot sector (tests/bios) sets modes by the video BIOS and draws, by a script
//! that the test writes; what is on the screen then must be, pixel by pixel, what a model of the hardware makes of the same
//! script (IBM VGA's registers, memory and default colours; VESA BIOS Extensions 2.0).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use orangery_tests::kvm::Kvm;
use orangery_tests::screen::{Colour, Font, Image};
use orangery_tests::script::{Op, Script, say};
use orangery_tests::{artifacts, orangery, report};

/// How long a software KVM that shares its computer may take for the firmware, or for a picture.
const PATIENCE: Duration = Duration::from_secs(300);
/// What the script sends first, so that it is told from what firmware may have said.
const HELLO: &str = "VGA script\n";

fn int10(ax: u16, bx: u16) -> Op {
    Op::Int10 { ax, bx, cx: 0, dx: 0, expect: None }
}

/// A VESA function that must be there and do it (VBE 2.0 §4.1).
fn vbe(function: u16, bx: u16, dx: u16) -> Op {
    Op::Int10 { ax: 0x4f00 | function, bx, cx: 0, dx, expect: Some(0x004f) }
}

fn fill(offset: u16, count: u16, value: u8) -> Op {
    Op::Fill { segment: 0xa000, offset, count, value }
}

fn copy(offset: u16, data: Vec<u8>) -> Op {
    Op::Copy { segment: 0xa000, offset, data }
}

fn or(offset: u16, value: u8) -> Op {
    Op::Or { segment: 0xa000, offset, value }
}

/// Sets entries of the palette, six bits a colour.
fn palette(first: u8, colours: &[[u8; 3]]) -> Vec<Op> {
    let mut ops = vec![Op::Out8(0x3c8, first)];
    ops.extend(colours.iter().flatten().map(|&part| Op::Out8(0x3c9, part)));
    ops
}

/// A machine that starts the script.
struct Machine {
    dir: tempfile::TempDir,
    serial: Child,
    pictures: PathBuf,
}

impl Machine {
    fn command(dir: &tempfile::TempDir, args: &[&str]) -> Command {
        let mut command = Command::new(orangery().unwrap());
        command.args(args).env("ORANGERY_LIBRARY", dir.path().join("machines"));
        command.env("XDG_RUNTIME_DIR", dir.path().join("run"));
        command.env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY").stdin(Stdio::null());
        command
    }

    fn start(name: &str, script: &Script) -> Machine {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("run")).unwrap();
        let disk = dir.path().join("script.img");
        std::fs::write(&disk, script.disk().unwrap()).unwrap();
        let disk = disk.to_str().unwrap();
        let create =
            ["create", "a", "--memory", "64", "--cpus", "1", "--net", "none", "--firmware", "bios", "--disk", disk];
        for args in [&create[..], &["start", "a", "--headless"]] {
            let output = Machine::command(&dir, args).output().unwrap();
            assert!(output.status.success(), "{args:?}: {output:?}");
        }
        let mut serial = Machine::command(&dir, &["console", "a"]);
        let serial = serial.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let pictures = artifacts().unwrap().join(name);
        std::fs::create_dir_all(&pictures).unwrap();
        let mut machine = Machine { dir, serial, pictures };
        let mut heard = Vec::new();
        while !heard.ends_with(HELLO.as_bytes()) {
            heard.push(machine.byte(&heard));
        }
        machine
    }

    /// The next byte from the guest.
    fn byte(&mut self, before: &[u8]) -> u8 {
        let mut byte = [0];
        let read = self.serial.stdout.as_mut().unwrap().read_exact(&mut byte);
        assert!(read.is_ok(), "the machine ended after {:?}", String::from_utf8_lossy(before));
        byte[0]
    }

    /// Waits until the guest has done a step, and checks what it sent.
    fn step(&mut self, sent: &[Option<u8>]) {
        let mut heard = Vec::new();
        for &expected in sent {
            heard.push(self.byte(&heard));
            let right = expected.is_none_or(|expected| heard.last() == Some(&expected));
            assert!(right, "the guest sent {heard:x?}, not {sent:x?}");
        }
        assert_eq!(self.byte(&heard), b'R', "after {heard:x?}");
    }

    fn go_on(&mut self) {
        self.serial.stdin.as_mut().unwrap().write_all(b"!").unwrap();
    }

    /// Waits until the screen shows the picture.
    fn shows(&self, name: &str, expected: &Image) {
        let path = self.pictures.join(format!("{name}.png"));
        let until = Instant::now() + PATIENCE;
        loop {
            let output = Machine::command(&self.dir, &["screenshot", "a", path.to_str().unwrap()]).output().unwrap();
            let seen = output.status.success().then(|| Image::read(&path).unwrap());
            if seen.as_ref() == Some(expected) {
                return;
            }
            if Instant::now() > until {
                let seen = seen.unwrap();
                let place = (0..expected.width * expected.height).map(|i| (i % expected.width, i / expected.width));
                let same_size = (seen.width, seen.height) == (expected.width, expected.height);
                let first = place.clone().find(|&(x, y)| same_size && seen.at(x, y) != expected.at(x, y));
                let first = first.map(|(x, y)| (x, y, seen.at(x, y), expected.at(x, y)));
                panic!(
                    "{name}: {}×{} and not {}×{}, {} pixels differ, the first: {first:?} (seen, expected): see {}",
                    seen.width,
                    seen.height,
                    expected.width,
                    expected.height,
                    seen.differences(expected),
                    path.display()
                );
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = Machine::command(&self.dir, &["stop", "a", "--force"]).output();
        let _ = self.serial.kill();
        let _ = self.serial.wait();
    }
}

/// Runs steps in one machine, each with its picture.
fn run(test: &str, name: &str, steps: Vec<(&str, Vec<Op>, Image)>) {
    if Kvm::detect() == Kvm::None {
        report::skip(2, test, "there is no usable /dev/kvm");
        return;
    }
    let mut script = Script::default();
    script.step(&say(HELLO)).unwrap();
    for (_, ops, _) in &steps {
        script.step(ops).unwrap();
    }
    let mut machine = Machine::start(name, &script);
    for (index, sent) in script.sent.iter().enumerate() {
        machine.step(sent);
        if let Some((name, _, picture)) = index.checked_sub(1).and_then(|index| steps.get(index)) {
            machine.shows(name, picture);
        }
        machine.go_on();
    }
}

/// Six bits of a colour as eight.
fn wide(part: u8) -> u8 {
    part << 2 | part >> 4
}

/// The first 16 colours, of every mode that has no more.
fn standard(n: usize) -> Colour {
    let level = |bit: usize| (if n & bit != 0 { 0xaa } else { 0 }) + if n & 8 != 0 { 0x55 } else { 0 };
    // Dark yellow is brown.
    if n == 6 { [0xaa, 0x55, 0] } else { [level(4), level(2), level(1)] }
}

/// The planar memory, as IBM describes it: four planes, latches, and what is done to bytes on their way.
struct Planes {
    planes: Vec<[u8; 4]>,
    latches: [u8; 4],
    map_mask: u8,
    graphics: [u8; 9],
    colours: [Colour; 16],
}

impl Planes {
    fn new() -> Planes {
        let mut graphics = [0; 9];
        graphics[8] = 0xff;
        let planes = vec![[0; 4]; 0x1_0000];
        Planes { planes, latches: [0; 4], map_mask: 0xf, graphics, colours: std::array::from_fn(standard) }
    }

    fn read(&mut self, at: u16) -> u8 {
        self.latches = self.planes[usize::from(at)];
        if self.graphics[5] & 8 == 0 {
            return self.latches[usize::from(self.graphics[4] & 3)];
        }
        // A bit is set where the planes that matter have the colour to compare with.
        let differs = (0..4).filter(|plane| self.graphics[7] & 1 << plane != 0).map(|plane| {
            let wanted = if self.graphics[2] & 1 << plane != 0 { 0xff } else { 0 };
            self.latches[plane] ^ wanted
        });
        !differs.fold(0, |all, plane| all | plane)
    }

    fn write(&mut self, at: u16, value: u8) {
        let g = self.graphics;
        let rotated = value.rotate_right(u32::from(g[3] & 7));
        for plane in 0..4 {
            if self.map_mask & 1 << plane == 0 {
                continue;
            }
            let bit = |register: u8| if register & 1 << plane != 0 { 0xff } else { 0 };
            let latch = self.latches[plane];
            let (source, mask) = match g[5] & 3 {
                0 if g[1] & 1 << plane != 0 => (bit(g[0]), g[8]),
                0 => (rotated, g[8]),
                1 => {
                    self.planes[usize::from(at)][plane] = latch;
                    continue;
                }
                2 => (bit(value), g[8]),
                _ => (bit(g[0]), g[8] & rotated),
            };
            let combined = match g[3] >> 3 & 3 {
                0 => source,
                1 => source & latch,
                2 => source | latch,
                _ => source ^ latch,
            };
            self.planes[usize::from(at)][plane] = combined & mask | latch & !mask;
        }
    }

    /// Does what the guest does; checks that reads give what the script expects.
    fn apply(&mut self, ops: &[Op]) {
        for op in ops {
            match *op {
                Op::Index(0x3c4, 2, value) => self.map_mask = value,
                Op::Index(0x3ce, index, value) => self.graphics[usize::from(index)] = value,
                Op::Fill { segment: 0xa000, offset, count, value } => {
                    (0..count).for_each(|i| self.write(offset + i, value));
                }
                Op::Copy { segment: 0xa000, offset, ref data } => {
                    (offset..).zip(data).for_each(|(at, &value)| self.write(at, value));
                }
                Op::Read { offset, expect, .. } => assert_eq!(self.read(offset), expect, "the test's own model"),
                Op::Or { offset, value, .. } => {
                    let read = self.read(offset);
                    self.write(offset, read | value);
                }
                _ => {}
            }
        }
    }

    /// The picture; pixels and lines are shown `times` over.
    fn picture(&self, width: usize, height: usize, times: usize) -> Image {
        let mut image = Image::new(width * times, height * times, [0; 3]);
        for y in 0..image.height {
            for x in 0..image.width {
                let (column, row) = (x / times, y / times);
                let planes = self.planes[row * width / 8 + column / 8];
                let bit = 7 - column % 8;
                let colour =
                    (0..4).filter(|&plane| planes[plane] >> bit & 1 != 0).map(|plane| 1 << plane).sum::<usize>();
                image.set(x, y, self.colours[colour]);
            }
        }
        image
    }
}

fn graphics(index: u8, value: u8) -> Op {
    Op::Index(0x3ce, index, value)
}

fn map_mask(mask: u8) -> Op {
    Op::Index(0x3c4, 2, mask)
}

/// Draws with everything that the planar modes have, on lines of `pitch` bytes.
fn planar_drawing(pitch: u16) -> Vec<Op> {
    let line = |y: u16| y * pitch;
    let mut ops = Vec::new();
    // Sixteen bars, plane by plane: write mode 0 with the map mask.
    for colour in 0..16u16 {
        ops.push(map_mask(colour as u8));
        ops.push(fill(line(10 * colour) + 2, pitch / 2, 0xff));
    }
    ops.push(map_mask(0xf));
    // Set/reset, on some planes only, and the bit mask: the latches keep the rest.
    ops.extend([graphics(0, 0b1010), graphics(1, 0b1110), graphics(8, 0x3c)]);
    ops.extend((0..40).map(|i| or(line(5 + i) + 4, 0x0f)));
    ops.extend([graphics(0, 0), graphics(1, 0)]);
    // A rotation, and each way to combine with the latches.
    for function in 0..4u8 {
        ops.extend([graphics(8, 0xff), graphics(3, function << 3 | 3)]);
        ops.extend((0..24).map(|i| or(line(60 + i) + 6 + 2 * u16::from(function), 0x5a)));
    }
    ops.push(graphics(3, 0));
    // Write mode 1: a copy of all planes at once, by the latches.
    ops.push(graphics(5, 1));
    for row in 0..20 {
        for column in 0..8 {
            ops.push(Op::Read { segment: 0xa000, offset: line(30 + row) + column, expect: 0 });
            ops.push(fill(line(100 + row) + pitch - 10 + column, 1, 0));
        }
    }
    // Write mode 2: a colour by its number, pixel by pixel through the bit mask.
    ops.push(graphics(5, 2));
    for x in 0..64u16 {
        ops.push(graphics(8, 0x80 >> (x % 8)));
        ops.push(or(line(130 + x / 2) + pitch - 9 + x / 8, (x % 16) as u8));
    }
    // Write mode 3: the byte is a mask for a colour.
    ops.extend([graphics(5, 3), graphics(8, 0xff), graphics(0, 13)]);
    for row in 0..30 {
        ops.push(Op::Read { segment: 0xa000, offset: line(120 + row) + 3, expect: 0 });
        ops.push(fill(line(120 + row) + 3, 1, 0x81 | (row as u8) << 1));
    }
    // Read mode 1: which pixels have a colour.
    ops.extend([graphics(5, 8), graphics(2, 5), graphics(7, 0xf)]);
    for row in [0, 50, 55, 121] {
        ops.push(Op::Read { segment: 0xa000, offset: line(row) + 3, expect: 0 });
    }
    ops.extend([graphics(5, 0), graphics(0, 0), graphics(2, 0), graphics(7, 0xf)]);
    ops
}

/// Puts what the model reads into the script, so that the guest's reads are checked too.
fn with_reads(mut ops: Vec<Op>) -> (Vec<Op>, Planes) {
    let mut model = Planes::new();
    for op in &mut ops {
        if let Op::Read { offset, expect, .. } = op {
            // The model's read has to happen once, in its place: `apply` does it again with the same latches.
            *expect = model.read(*offset);
        }
        model.apply(std::slice::from_ref(op));
    }
    (ops, model)
}

#[test]
fn planar_modes_show_what_every_way_to_write_leaves_in_the_planes() {
    let mut steps = Vec::new();
    for (name, mode, width, height, times) in
        [("mode-0d", 0x0du16, 320, 200, 2), ("mode-10", 0x10, 640, 350, 1), ("mode-12", 0x12, 640, 480, 1)]
    {
        let (mut ops, model) = with_reads(planar_drawing(width as u16 / 8));
        ops.insert(0, int10(mode, 0));
        steps.push((name, ops, model.picture(width, height, times)));
    }
    run("planar_modes_show_what_every_way_to_write_leaves_in_the_planes", "vga-planar", steps);
}

/// A palette that has no two colours alike.
fn all_different() -> Vec<[u8; 3]> {
    (0..=255u8).map(|i| [i & 0x3f, (i >> 2) ^ 0x15, (i >> 6) * 16 + (i & 0xf)]).collect()
}

fn shown(palette: &[[u8; 3]], index: u8) -> Colour {
    palette[usize::from(index)].map(wide)
}

#[test]
fn mode_13h_shows_256_colours_in_a_line_of_bytes() {
    let colours = all_different();
    let mut memory = vec![0u8; 320 * 200];
    let mut ops = vec![int10(0x13, 0)];
    ops.extend(palette(0, &colours));
    // Bands of every colour; a frame of single bytes; a picture in the middle.
    for y in 0..200u16 {
        ops.push(fill(y * 320, 320, y as u8));
        memory[usize::from(y) * 320..][..320].fill(y as u8);
    }
    for x in 0..256u16 {
        let at = 40 * 320 + 30 + x;
        ops.push(copy(at, vec![x as u8]));
        memory[usize::from(at)] = x as u8;
    }
    for y in 0..32u16 {
        let row: Vec<u8> = (0..64).map(|x: u16| ((x * 7) ^ (y * 13)) as u8).collect();
        let at = (90 + y) * 320 + 130;
        memory[usize::from(at)..][..64].copy_from_slice(&row);
        ops.push(copy(at, row));
    }
    ops.push(Op::Read { segment: 0xa000, offset: 90 * 320 + 131, expect: memory[90 * 320 + 131] });
    let mut picture = Image::new(640, 400, [0; 3]);
    for y in 0..400 {
        for x in 0..640 {
            picture.set(x, y, shown(&colours, memory[y / 2 * 320 + x / 2]));
        }
    }
    run("mode_13h_shows_256_colours_in_a_line_of_bytes", "vga-13", vec![("mode-13", ops, picture)]);
}

/// Draws in a VESA mode through the window of 64 KiB, and makes the picture from the same bytes.
fn linear(mode: u16, width: usize, height: usize, bytes: usize, colour: impl Fn(&[u8]) -> Colour) -> (Vec<Op>, Image) {
    let mut memory = vec![0u8; width * height * bytes];
    let mut ops = vec![vbe(2, mode, 0)];
    let mut bank = 0;
    let mut put = |ops: &mut Vec<Op>, at: usize, data: &[u8]| {
        memory[at..at + data.len()].copy_from_slice(data);
        let mut at = at;
        let mut data = data;
        while !data.is_empty() {
            if at >> 16 != bank {
                bank = at >> 16;
                ops.push(vbe(5, 0, bank as u16));
            }
            // A piece ends where the window does.
            let (now, rest) = data.split_at(data.len().min(0x1_0000 - (at & 0xffff)));
            ops.push(copy((at & 0xffff) as u16, now.to_vec()));
            (at, data) = (at + now.len(), rest);
        }
    };
    for y in (0..height).step_by(7) {
        let x = y % 32;
        let row: Vec<u8> = (0..40 * bytes).map(|i| (i * 11 + y * 5) as u8).collect();
        put(&mut ops, (y * width + x) * bytes, &row);
    }
    // The corners, and the last pixel of all.
    for (x, y) in [(0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1)] {
        put(&mut ops, (y * width + x) * bytes, &vec![0xff; bytes]);
    }
    let mut picture = Image::new(width, height, [0; 3]);
    for y in 0..height {
        for x in 0..width {
            picture.set(x, y, colour(&memory[(y * width + x) * bytes..][..bytes]));
        }
    }
    (ops, picture)
}

#[test]
fn vesa_modes_of_every_depth_show_their_linear_memory() {
    let colours = all_different();
    let scaled = |value: u16, bits: u32| {
        let value = u32::from(value) & ((1 << bits) - 1);
        (value << (8 - bits) | value >> (2 * bits - 8)) as u8
    };
    let word = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    let mut steps = Vec::new();
    let (mut ops, picture) = linear(0x101, 640, 480, 1, |b| shown(&colours, b[0]));
    ops.splice(1..1, palette(0, &colours));
    steps.push(("vesa-8", ops, picture));
    let fifteen = |b: &[u8]| [scaled(word(b) >> 10, 5), scaled(word(b) >> 5, 5), scaled(word(b), 5)];
    let (ops, picture) = linear(0x10d, 320, 200, 2, fifteen);
    steps.push(("vesa-15", ops, picture));
    let sixteen = |b: &[u8]| [scaled(word(b) >> 11, 5), scaled(word(b) >> 5, 6), scaled(word(b), 5)];
    let (ops, picture) = linear(0x111, 640, 480, 2, sixteen);
    steps.push(("vesa-16", ops, picture));
    let (ops, picture) = linear(0x10f, 320, 200, 3, |b| [b[2], b[1], b[0]]);
    steps.push(("vesa-24", ops, picture));
    let (ops, picture) = linear(0x140, 320, 200, 4, |b| [b[2], b[1], b[0]]);
    steps.push(("vesa-32", ops, picture));
    run("vesa_modes_of_every_depth_show_their_linear_memory", "vga-vesa", steps);
}

/// A cell of text.
#[derive(Clone, Copy)]
struct Cell {
    code: u8,
    attribute: u8,
}

/// A screen of 80×25 cells, nine dots wide, and a cursor over the lines from `cursor.2` to `cursor.3`.
fn text(font: &[[u8; 16]], cells: &[Cell], cursor: Option<(usize, usize, usize, usize)>) -> Image {
    let mut image = Image::new(720, 400, [0; 3]);
    for y in 0..400 {
        for x in 0..720 {
            let (column, row, dot, line) = (x / 9, y / 16, x % 9, y % 16);
            let Cell { code, attribute } = cells[row * 80 + column];
            let bits = font[usize::from(code)][line];
            let lit = match dot {
                8 => (0xc0..=0xdf).contains(&code) && bits & 1 != 0,
                dot => bits & 0x80 >> dot != 0,
            };
            let cursor = cursor.is_some_and(|(at_x, at_y, first, last)| {
                (at_x, at_y) == (column, row) && (first..=last).contains(&line)
            });
            let colour = if lit || cursor { attribute & 15 } else { attribute >> 4 & 7 };
            image.set(x, y, standard(usize::from(colour)));
        }
    }
    image
}

#[test]
fn text_mode_shows_the_firmware_s_font_a_loaded_one_and_the_cursor() {
    let mut font = Font::vga().unwrap().glyphs().to_vec();
    let mut cells = vec![Cell { code: b' ', attribute: 7 }; 80 * 25];
    let mut ops = vec![int10(3, 0)];
    // Every character in every colour that does not blink.
    for row in 0..16usize {
        let line: Vec<Cell> = (0..64)
            .map(|x| Cell { code: (row * 16 + x % 16) as u8, attribute: ((row * 8 + x / 8) & 0x7f) as u8 })
            .collect();
        cells[row * 80 + 4..][..64].copy_from_slice(&line);
        let data = line.iter().flat_map(|cell| [cell.code, cell.attribute]).collect();
        ops.push(Op::Copy { segment: 0xb800, offset: ((row * 80 + 4) * 2) as u16, data });
    }
    // The cursor: where the BIOS puts it, over lines that the registers name.
    ops.push(Op::Int10 { ax: 0x0200, bx: 0, cx: 0, dx: 0x1405, expect: None });
    ops.extend([Op::Index(0x3d4, 0x0a, 5), Op::Index(0x3d4, 0x0b, 9)]);
    let first = text(&font, &cells, Some((5, 0x14, 5, 9)));
    // The BIOS writes text; without a cursor; a character of the guest's own.
    let mut more = vec![Op::Index(0x3d4, 0x0a, 0x20)];
    let words = b"by the BIOS";
    more.push(Op::Int10 { ax: 0x0200, bx: 0, cx: 0, dx: 0x1600, expect: None });
    for &byte in words {
        more.push(int10(0x0e00 | u16::from(byte), 7));
    }
    for (cell, &code) in cells[0x16 * 80..].iter_mut().zip(words) {
        cell.code = code;
    }
    let glyph: [u8; 16] = std::array::from_fn(|line| 0x80u8.rotate_left(line as u32) | 1);
    font[0x80] = glyph;
    more.push(Op::Int10Data { ax: 0x1100, bx: 0x1000, cx: 1, dx: 0x80, data: glyph.to_vec() });
    let second = text(&font, &cells, None);
    run(
        "text_mode_shows_the_firmware_s_font_a_loaded_one_and_the_cursor",
        "vga-text",
        vec![("text", ops, first), ("text-loaded", more, second)],
    );
}
