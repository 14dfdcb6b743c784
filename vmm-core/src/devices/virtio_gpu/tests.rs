//! The device behind its registers, driven by well-behaved and by hostile drivers.

use super::*;
use crate::backend::display::Screen;
use crate::base::GuestAddress;
use crate::devices::vga::Vga;
use crate::testkit::{FakeSlots, Guest, Segments, drive};
use crate::virtio::{Face, Layout};

const CURSOR_QUEUE: usize = 1;
const OK: u32 = 0x1100;
const PREFERRED: Mode = Mode { width: 1280, height: 800 };
/// Where tests put pictures in guest memory.
pub const PICTURE: u64 = 0x80_0000;

fn monitor() -> (Monitor, Screen) {
    let screen = Screen::new(|| ());
    (Monitor::new(screen.sink(), PREFERRED).unwrap(), screen)
}

fn gpu() -> Gpu {
    Gpu::new(monitor().0)
}

crate::virtio_conformance!(conformance, gpu);

/// A driver that is up, with the host's side of its monitor.
pub struct Driver {
    pub guest: Guest<Gpu>,
    pub monitor: Monitor,
    pub screen: Screen,
}

impl Driver {
    fn new() -> Driver {
        let (monitor, screen) = monitor();
        let mut guest = Guest::new(Gpu::new(monitor.clone()));
        guest.start();
        Driver { guest, monitor, screen }
    }

    /// Sends a request of 32-bit words and returns the answer.
    fn send(&mut self, kind: u32, words: &[u32]) -> Vec<u8> {
        let request = request(kind, 0, words);
        self.guest.request(CONTROL, &[&request], &[2048]).unwrap()
    }

    /// The type of the answer.
    fn ask(&mut self, kind: u32, words: &[u32]) -> u32 {
        kind_of(&self.send(kind, words))
    }

    pub fn create(&mut self, id: u32, format: u32, width: u32, height: u32) -> u32 {
        self.ask(command::RESOURCE_CREATE_2D, &[id, format, width, height])
    }

    pub fn attach(&mut self, id: u32, runs: &[(u64, u32)]) -> u32 {
        let mut words = vec![id, runs.len() as u32];
        words.extend(runs.iter().flat_map(|&(address, len)| [address as u32, (address >> 32) as u32, len, 0]));
        self.ask(command::RESOURCE_ATTACH_BACKING, &words)
    }

    pub fn transfer(&mut self, id: u32, rect: [u32; 4], offset: u64) -> u32 {
        let [x, y, w, h] = rect;
        let words = [x, y, w, h, offset as u32, (offset >> 32) as u32, id, 0];
        self.ask(command::TRANSFER_TO_HOST_2D, &words)
    }

    pub fn scanout(&mut self, id: u32, rect: [u32; 4]) -> u32 {
        let [x, y, w, h] = rect;
        self.ask(command::SET_SCANOUT, &[x, y, w, h, 0, id])
    }

    pub fn flush(&mut self, id: u32, rect: [u32; 4]) -> u32 {
        let [x, y, w, h] = rect;
        self.ask(command::RESOURCE_FLUSH, &[x, y, w, h, id, 0])
    }

    pub fn paint(&mut self, offset: u64, pixels: &[u32]) {
        let bytes: Vec<u8> = pixels.iter().flat_map(|p| p.to_le_bytes()).collect();
        self.guest.memory.write(GuestAddress(PICTURE + offset), &bytes).unwrap();
    }

    /// A 32x16 picture on the monitor, backed by one run.
    fn show(&mut self) {
        assert_eq!(self.create(1, 2, 32, 16), OK);
        assert_eq!(self.attach(1, &[(PICTURE, 32 * 16 * 4)]), OK);
        assert_eq!(self.scanout(1, [0, 0, 32, 16]), OK);
    }

    fn pixel(&self, x: usize, y: usize) -> u32 {
        let (mode, pixels) = self.screen.snapshot().unwrap();
        let at = (y * mode.width as usize + x) * 4;
        u32::from_le_bytes([pixels[at], pixels[at + 1], pixels[at + 2], 0])
    }

    fn damage(&self) -> Vec<Rect> {
        self.screen.take(|update| update.damage.to_vec())
    }
}

fn request(kind: u32, flags: u32, words: &[u32]) -> Vec<u8> {
    let header = [kind, flags, 0x1234_5678, 0x9abc_def0, 7, 0];
    header.iter().chain(words).flat_map(|word| word.to_le_bytes()).collect()
}

fn kind_of(answer: &[u8]) -> u32 {
    word(answer, 0)
}

fn word(bytes: &[u8], index: usize) -> u32 {
    u32::from_le_bytes(bytes[4 * index..][..4].try_into().unwrap())
}

fn rect(x: u32, y: u32, width: u32, height: u32) -> Rect {
    Rect { x, y, width, height }
}

#[test]
fn a_picture_is_transferred_shown_and_flushed() {
    let mut d = Driver::new();
    d.paint(0, &[0x11_2233; 32 * 16]);
    d.show();
    assert_eq!(d.pixel(0, 0), 0, "nothing was transferred yet");
    assert_eq!(d.transfer(1, [0, 0, 32, 16], 0), OK);
    d.damage();
    assert_eq!(d.flush(1, [4, 2, 8, 3]), OK);
    assert_eq!(d.damage(), [rect(4, 2, 8, 3)]);
    assert_eq!([d.pixel(4, 2), d.pixel(11, 4), d.pixel(3, 2)], [0x11_2233, 0x11_2233, 0]);
}

#[test]
fn a_transfer_of_a_rectangle_takes_rows_from_its_offset() {
    let mut d = Driver::new();
    d.show();
    d.paint(0, &(0..32 * 16).collect::<Vec<u32>>());
    // Rows 5 and 6, columns 3 and 4, from where row 1, column 2 is.
    assert_eq!(d.transfer(1, [3, 5, 2, 2], 4 * 34), OK);
    d.flush(1, [0, 0, 32, 16]);
    assert_eq!([d.pixel(3, 5), d.pixel(4, 5), d.pixel(3, 6), d.pixel(5, 5)], [34, 35, 66, 0]);
}

#[test]
fn every_format_arrives_as_the_same_colour() {
    let (r, g, b) = (1, 2, 3);
    for (format, bytes) in [
        (1, [b, g, r, 0]),
        (2, [b, g, r, 0]),
        (3, [0, r, g, b]),
        (4, [0, r, g, b]),
        (67, [r, g, b, 0]),
        (68, [0, b, g, r]),
        (121, [0, b, g, r]),
        (134, [r, g, b, 0]),
    ] {
        let mut d = Driver::new();
        d.paint(0, &[u32::from_le_bytes(bytes); 16 * 16]);
        assert_eq!(d.create(1, format, 16, 16), OK);
        assert_eq!(d.attach(1, &[(PICTURE, 1024)]), OK);
        assert_eq!(d.transfer(1, [0, 0, 16, 16], 0), OK);
        assert_eq!(d.transfer(1, [3, 3, 2, 2], 0), OK);
        assert_eq!(d.scanout(1, [0, 0, 16, 16]), OK);
        assert_eq!([d.pixel(0, 0), d.pixel(4, 4)], [0x01_0203; 2], "format {format}");
    }
}

#[test]
fn scattered_pages_make_one_picture() {
    let mut d = Driver::new();
    assert_eq!(d.create(1, 2, 32, 16), OK);
    d.paint(0, &(0..512).collect::<Vec<u32>>());
    // The halves swapped, one of them in unequal pieces.
    let half = 1024;
    let runs = [(PICTURE + half, 1000), (PICTURE + half + 1000, 24), (PICTURE, 4), (PICTURE + 4, half as u32 - 4)];
    assert_eq!(d.attach(1, &runs), OK);
    assert_eq!(d.transfer(1, [0, 0, 32, 16], 0), OK);
    assert_eq!(d.scanout(1, [0, 0, 32, 16]), OK);
    assert_eq!([d.pixel(0, 0), d.pixel(31, 7), d.pixel(0, 8), d.pixel(31, 15)], [256, 511, 0, 255]);
}

#[test]
fn a_part_of_a_picture_can_be_the_screen() {
    let mut d = Driver::new();
    d.show();
    d.paint(0, &(0..512).collect::<Vec<u32>>());
    d.transfer(1, [0, 0, 32, 16], 0);
    assert_eq!(d.scanout(1, [10, 0, 16, 16]), OK);
    assert_eq!(d.screen.snapshot().unwrap().0, Mode { width: 16, height: 16 });
    assert_eq!([d.pixel(0, 0), d.pixel(15, 15)], [10, 15 * 32 + 25]);
    d.damage();
    d.flush(1, [0, 0, 12, 4]);
    assert_eq!(d.damage(), [rect(0, 0, 2, 4)]);
    d.flush(1, [28, 0, 4, 4]);
    assert_eq!(d.damage(), []);
}

#[test]
fn a_flip_to_another_picture_shows_all_of_it_once() {
    let mut d = Driver::new();
    d.show();
    assert_eq!(d.create(2, 2, 32, 16), OK);
    assert_eq!(d.attach(2, &[(PICTURE, 2048)]), OK);
    d.paint(0, &[5; 512]);
    d.transfer(2, [0, 0, 32, 16], 0);
    let frames = d.screen.frames();
    for (kind, words) in [(command::SET_SCANOUT, [0, 0, 32, 16, 0, 2]), (command::RESOURCE_FLUSH, [0, 0, 32, 16, 2, 0])]
    {
        d.guest.put(CONTROL, Segments { readable: &[&request(kind, 0, &words)], writable: &[64] }).unwrap();
    }
    d.guest.kick(CONTROL);
    assert_eq!((d.pixel(31, 15), d.screen.frames()), (5, frames + 1));
}

#[test]
fn the_monitor_is_described_and_a_new_size_is_announced() {
    let mut d = Driver::new();
    let answer = d.send(command::GET_DISPLAY_INFO, &[]);
    assert_eq!(answer.len(), 24 + 16 * 24);
    assert_eq!([0, 8, 9, 10, 12].map(|i| word(&answer, i)), [0x1101, 1280, 800, 1, 0]);
    let answer = d.send(command::GET_EDID, &[0, 0]);
    assert_eq!((kind_of(&answer), word(&answer, 6), answer.len()), (0x1104, 256, 24 + 8 + 1024));
    assert_eq!(answer[32..32 + 256], d.monitor.edid());
    assert_eq!(d.ask(command::GET_EDID, &[1, 0]), Refusal::InvalidScanout as u32);

    let events = |d: &Driver| {
        let mut bytes = [0; 16];
        d.guest.read_device_config(0, &mut bytes);
        (word(&bytes, 0), word(&bytes, 2), word(&bytes, 3))
    };
    assert_eq!(events(&d), (0, 1, 0));
    d.guest.msi.take();
    d.monitor.resize(Mode { width: 1000, height: 700 });
    d.guest.run();
    assert_eq!(events(&d).0, 1);
    assert_eq!(d.guest.msi.take().first().map(|m| m.data), Some(0), "a configuration interrupt");
    d.guest.write_device_config(4, &1u32.to_le_bytes());
    assert_eq!(events(&d).0, 0);
    let answer = d.send(command::GET_DISPLAY_INFO, &[]);
    assert_eq!([8, 9].map(|i| word(&answer, i)), [1000, 700]);
}

#[test]
fn a_fence_comes_back_with_the_answer() {
    let mut d = Driver::new();
    let request = request(command::RESOURCE_UNREF, 1, &[9, 0]);
    let answer = d.guest.request(CONTROL, &[&request], &[24]).unwrap();
    let expected = [Refusal::InvalidResource as u32, 1, 0x1234_5678, 0x9abc_def0, 7, 0];
    assert_eq!((0..6).map(|i| word(&answer, i)).collect::<Vec<_>>(), expected);
}

#[test]
fn wrong_requests_are_refused_for_their_reason() {
    use Refusal::{InvalidParameter, InvalidResource, InvalidScanout, OutOfMemory, Unspecified};
    let mut d = Driver::new();
    d.show();
    let refused = |kind: u32, refusal: Refusal| assert_eq!(kind, refusal as u32);
    refused(d.ask(0x0109, &[0; 8]), Unspecified);
    refused(d.create(0, 1, 8, 8), InvalidResource);
    refused(d.create(1, 1, 8, 8), InvalidResource);
    refused(d.create(2, 5, 8, 8), InvalidParameter);
    refused(d.create(2, 1, 0, 8), InvalidParameter);
    refused(d.create(2, 1, 8, 16_385), InvalidParameter);
    refused(d.create(2, 1, 16_384, 16_384), OutOfMemory);
    refused(d.ask(command::RESOURCE_UNREF, &[2, 0]), InvalidResource);
    refused(d.attach(2, &[(PICTURE, 4)]), InvalidResource);
    refused(d.attach(1, &[(PICTURE, 4)]), Unspecified);
    assert_eq!(d.create(2, 1, 16, 16), OK);
    refused(d.transfer(2, [0, 0, 16, 16], 0), InvalidResource);
    refused(d.ask(command::RESOURCE_DETACH_BACKING, &[2, 0]), InvalidResource);
    refused(d.attach(2, &[]), InvalidParameter);
    refused(d.attach(2, &[(PICTURE, 4), (u64::MAX - 3, 8)]), InvalidParameter);
    refused(d.attach(2, &[(0xc000_0000, 8)]), InvalidParameter);
    refused(d.ask(command::RESOURCE_ATTACH_BACKING, &[2, u32::MAX]), InvalidParameter);
    for bad in [[1, 0, 32, 16], [0, 1, 32, 16], [0, 0, 0, 16], [u32::MAX, 0, 2, 2], [0, 0, u32::MAX, u32::MAX]] {
        refused(d.transfer(1, bad, 0), InvalidParameter);
        refused(d.flush(1, bad), InvalidParameter);
        refused(d.scanout(1, bad), InvalidParameter);
    }
    refused(d.transfer(1, [0, 0, 32, 16], 1), InvalidParameter);
    refused(d.transfer(1, [0, 0, 1, 1], u64::MAX - 1), InvalidParameter);
    refused(d.scanout(1, [0, 0, 15, 16]), InvalidParameter);
    refused(d.scanout(9, [0, 0, 32, 16]), InvalidResource);
    refused(d.ask(command::SET_SCANOUT, &[0, 0, 32, 16, 1, 1]), InvalidScanout);
    refused(d.ask(command::SET_SCANOUT, &[0, 0, 32]), InvalidParameter);
    assert_eq!(d.guest.request(CONTROL, &[b"short"], &[24]).map(|a| kind_of(&a)), Some(Unspecified as u32));
    assert_eq!(d.guest.request(CONTROL, &[&request(command::GET_DISPLAY_INFO, 0, &[])], &[10]).unwrap().len(), 10);
}

#[test]
fn memory_for_pictures_is_limited_and_comes_back() {
    let mut d = Driver::new();
    let created = (1..100).take_while(|&id| d.create(id, 1, 2048, 2048) == OK).count();
    assert_eq!(created, 15, "256 MiB hold 15 pictures of 16 MiB and what goes with them");
    assert_eq!(d.ask(command::RESOURCE_UNREF, &[3, 0]), OK);
    assert_eq!(d.create(50, 1, 2048, 2048), OK);
    // Even pictures of one pixel cost something.
    let small = (1000..1_000_000).take_while(|&id| d.create(id, 1, 1, 1) == OK).count();
    assert!(small < 20_000, "{small} of them");
}

#[test]
fn a_pointer_is_shown_moved_and_hidden() {
    let mut d = Driver::new();
    d.show();
    let cursor = |d: &mut Driver, kind: u32, x: u32, id: u32, hot: u32| {
        let request = request(kind, 0, &[0, x, 20, 0, id, hot, 3, 0]);
        // Linux leaves no room for an answer here.
        assert_eq!(d.guest.request(CURSOR_QUEUE, &[&request], &[]).unwrap().len(), 0);
        d.screen.take(|update| update.cursor.clone())
    };
    d.create(7, 2, 64, 64);
    d.paint(0, &[0x00_ff_00_00; 64 * 64]);
    d.attach(7, &[(PICTURE, 64 * 64 * 4)]);
    d.transfer(7, [0, 0, 64, 64], 0);
    let shown = cursor(&mut d, command::UPDATE_CURSOR, 10, 7, 2);
    assert_eq!((shown.visible, shown.x, shown.y, shown.hot_x, shown.hot_y), (true, 12, 23, 2, 3));
    assert_eq!(shown.image.as_ref().map(|i| i.pixels[..4].to_vec()), Some(vec![0, 0, 0xff, 0xff]));
    let moved = cursor(&mut d, command::MOVE_CURSOR, u32::MAX, 0, 0);
    assert_eq!((moved.visible, moved.x, moved.image), (true, 1, shown.image));
    let refused = cursor(&mut d, command::UPDATE_CURSOR, 0, 1, 0);
    assert!(refused.visible, "a picture of another size is refused");
    let hidden = cursor(&mut d, command::UPDATE_CURSOR, 0, 0, 0);
    assert!(!hidden.visible);
}

#[test]
fn switching_the_scanout_off_or_destroying_its_picture_darkens_the_screen() {
    let mut d = Driver::new();
    d.show();
    assert_eq!(d.scanout(0, [0; 4]), OK);
    assert!(d.screen.snapshot().is_none());
    assert_eq!(d.scanout(1, [0, 0, 32, 16]), OK);
    assert!(d.screen.snapshot().is_some());
    assert_eq!(d.ask(command::RESOURCE_UNREF, &[1, 0]), OK);
    assert!(d.screen.snapshot().is_none());
}

#[test]
fn a_reset_gives_the_monitor_back_and_forgets_all_pictures() {
    let mut d = Driver::new();
    assert_eq!(d.monitor.turn().0, Painter::Vga);
    d.show();
    assert_eq!(d.monitor.turn().0, Painter::Gpu);
    d.guest.reset();
    assert_eq!(d.monitor.turn().0, Painter::Vga);
    assert!(d.screen.snapshot().is_some(), "the old picture stays until the VGA draws");
    d.guest.start();
    assert_eq!(d.flush(1, [0, 0, 1, 1]), Refusal::InvalidResource as u32);
}

#[test]
fn a_checkpoint_brings_pictures_pointer_and_scanout_back() {
    let mut d = Driver::new();
    d.paint(0, &[0x12_3456; 512]);
    d.show();
    d.transfer(1, [0, 0, 32, 16], 0);
    d.create(7, 1, 64, 64);
    let request = request(command::UPDATE_CURSOR, 0, &[0, 30, 20, 0, 7, 1, 1, 0]);
    d.guest.request(CURSOR_QUEUE, &[&request], &[]).unwrap();

    let (monitor, screen) = monitor();
    d.guest.move_to(Gpu::new(monitor.clone()), None);
    (d.monitor, d.screen) = (monitor, screen);
    assert_eq!(d.pixel(31, 15), 0x12_3456);
    assert!(d.screen.take(|update| update.cursor.visible));
    // The backing came too.
    d.paint(0, &[0x65_4321; 512]);
    assert_eq!(d.transfer(1, [0, 0, 32, 16], 0), OK);
    assert_eq!(d.flush(1, [0, 0, 32, 16]), OK);
    assert_eq!(d.pixel(0, 0), 0x65_4321);
}

#[test]
fn an_impossible_checkpoint_is_refused() {
    let make = |change: &dyn Fn(&mut State)| {
        let mut own = Gpu::new(monitor().0);
        own.resources.insert(1, Resource::new(1, 64, 64, MEMORY_LIMIT).unwrap());
        let mut state = own.save();
        change(&mut state);
        Gpu::new(monitor().0).restore(state)
    };
    assert_eq!(make(&|_| ()), Ok(()));
    assert!(make(&|s| s.shown = Some([2, 0, 0, 64, 64])).is_err());
    assert!(make(&|s| s.shown = Some([1, 1, 0, 64, 64])).is_err());
    assert!(make(&|s| s.cursor.hot = (64, 0)).is_err());
    assert!(make(&|s| s.cursor.image = Some(Bytes(vec![0; 4]))).is_err());
    let twin = Resource::new(1, 64, 64, MEMORY_LIMIT).unwrap();
    assert!(make(&|s| s.resources.push(twin.save(1))).is_err());
    assert!(make(&|s| s.resources.push(twin.save(0))).is_err());
}

#[test]
fn the_device_works_behind_the_vga_face_and_both_are_kept_together() {
    let face = |monitor: &Monitor| Vga::new(Arc::new(FakeSlots::default()), monitor.clone()).unwrap();
    let (monitor, screen) = self::monitor();
    let vga = face(&monitor);
    let mut guest = Guest::with_face(Gpu::new(monitor.clone()), Layout::VGA, Some(vga));
    guest.start();
    let mut id = [0; 2];
    guest.read(0x500, &mut id);
    assert_eq!(id, [0xc5, 0xb0]);
    guest.write(0x502, &[0x20, 3]);
    guest.write(0x404, &[2, 0x0f]);
    let mut d = Driver { guest, monitor, screen };
    d.show();
    let (monitor, screen) = self::monitor();
    let other = face(&monitor);
    d.guest.move_to(Gpu::new(monitor.clone()), Some(other.clone()));
    let mut width = [0; 2];
    d.guest.read(0x502, &mut width);
    assert_eq!((u16::from_le_bytes(width), screen.snapshot().map(|s| s.0.width)), (800, Some(32)));
    other.reset();
    d.guest.read(0x502, &mut width);
    assert_eq!(width, [0; 2]);
}

#[test]
fn a_hostile_driver_behind_the_face_reaches_no_panic() {
    let (monitor, _screen) = monitor();
    let vga = Vga::new(Arc::new(FakeSlots::default()), monitor.clone()).unwrap();
    let mut guest = Guest::with_face(Gpu::new(monitor), Layout::VGA, Some(vga));
    guest.start();
    for offset in (0u32..0x1000).step_by(3).chain(0xfff0..0x1_0000) {
        for len in [1, 2, 4, 8] {
            let mut data = [0xa5; 8];
            guest.write(offset, &data[..len]);
            guest.read(offset, &mut data[..len]);
        }
    }
    guest.run();
    assert!(!guest.needs_reset());
}

mod anything {
    use super::*;
    use proptest::prelude::*;

    /// Words that mean something to some request, and others.
    fn any_word() -> impl Strategy<Value = u32> {
        prop_oneof![0u32..4, 0u32..80, Just(PICTURE as u32), Just(2048), any::<u32>()]
    }

    fn any_kind() -> impl Strategy<Value = u32> {
        prop_oneof![0x0100u32..0x010c, 0x0300u32..0x0302, any::<u32>()]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Every request is answered, whatever is in it, and what is saved can be restored.
        #[test]
        fn every_request_has_an_answer(
            requests in prop::collection::vec((any_kind(), prop::collection::vec(any_word(), 0..14)), 0..60),
        ) {
            let mut d = Driver::new();
            d.show();
            for (kind, words) in requests {
                let answer = d.ask(kind, &words);
                prop_assert!((0x1100..0x1300).contains(&answer), "{answer:#x}");
            }
            prop_assert!(!d.guest.needs_reset());
            d.guest.move_to(Gpu::new(monitor().0), None);
        }

        #[test]
        fn any_bytes_in_the_queues_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            drive(&gpu, &bytes);
        }
    }
}
