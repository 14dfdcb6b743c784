//! The device against a disk in memory, by a driver that is honest, clumsy or hostile.

use proptest::prelude::*;

use super::*;
use crate::backend::disk::{Control, DiskError, MemoryDisk};
use crate::testkit::{Guest, Segments};

const SECTORS: usize = 256;

fn blk() -> (Blk, Control) {
    let bytes = (0..SECTORS * 512).map(|i| (i / 512 + i * 7) as u8).collect();
    let (disk, control) = MemoryDisk::new(bytes, false);
    (Blk::new(Box::new(disk), "orangery-disk-0"), control)
}

fn readonly() -> (Blk, Control) {
    let (disk, control) = MemoryDisk::new(vec![1; 4096], true);
    (Blk::new(Box::new(disk), "a name of more than twenty bytes"), control)
}

crate::virtio_conformance!(writable, || blk().0);
crate::virtio_conformance!(read_only, || readonly().0);

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

fn range(sector: u64, count: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&count.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

fn started(device: Blk) -> Guest<Blk> {
    let mut guest = Guest::new(device);
    guest.start();
    guest
}

/// A request's status and data.
fn ask(guest: &mut Guest<Blk>, kind: u32, sector: u64, data: &[&[u8]], room: &[u32]) -> (u8, Vec<u8>) {
    let head = header(kind, sector);
    let readable: Vec<&[u8]> = std::iter::once(&head[..]).chain(data.iter().copied()).collect();
    let writable: Vec<u32> = room.iter().copied().chain([1]).collect();
    let mut answer = guest.request(0, &readable, &writable).expect("a completion");
    assert_eq!(answer.len() as u32, room.iter().sum::<u32>() + 1, "completed with another length");
    (answer.pop().unwrap(), answer)
}

#[test]
fn what_is_written_is_read_back_however_it_is_cut_into_buffers() {
    let (device, control) = blk();
    let mut guest = started(device);
    let data: Vec<u8> = (0..2048u32).map(|i| ((i * 31) >> 3) as u8).collect();
    assert_eq!(ask(&mut guest, kind::OUT, 5, &[&data[..1], &data[1..700], &data[700..]], &[]).0, 0);
    assert_eq!(control.bytes()[5 * 512..9 * 512], data);
    assert_eq!(ask(&mut guest, kind::IN, 5, &[], &[511, 513, 1024]), (0, data));
    // The header and the status may be cut anywhere, too.
    let head = header(kind::IN, 0);
    let answer = guest.request(0, &[&head[..3], &head[3..]], &[512 - 100, 101]).unwrap();
    assert_eq!((answer.len(), answer[512]), (513, 0));
    assert_eq!(answer[..512], control.bytes()[..512]);
}

#[test]
fn capacity_and_limits_are_in_the_configuration() {
    let guest = started(blk().0);
    let mut config = [0; 60];
    guest.read_device_config(0, &mut config);
    assert_eq!(u64::from_le_bytes(config[..8].try_into().unwrap()), SECTORS as u64);
    assert_eq!(u32::from_le_bytes(config[8..12].try_into().unwrap()), 0, "no SIZE_MAX");
    assert_eq!(u32::from_le_bytes(config[12..16].try_into().unwrap()), 254);
    assert_eq!(u32::from_le_bytes(config[20..24].try_into().unwrap()), 512);
    assert_eq!(config[24], 3, "eight sectors a block");
    assert_eq!(guest.offered() & (feature::RO | feature::DISCARD), feature::DISCARD);
    // The most segments that are promised fit.
    let room = vec![512; 254];
    let mut big = started(Blk::new(Box::new(MemoryDisk::new(vec![9; 254 * 512], false).0), ""));
    assert_eq!(ask(&mut big, kind::IN, 0, &[], &room), (0, vec![9; 254 * 512]));
}

#[test]
fn requests_that_are_no_whole_sectors_or_leave_the_disk_fail() {
    let (device, control) = blk();
    let mut guest = started(device);
    let before = control.bytes();
    for (sector, len) in [(0, 100), (0, 513), (255, 1024), (256, 512), (1 << 54, 512), (u64::MAX, 512), (1 << 55, 512)]
    {
        assert_eq!(ask(&mut guest, kind::IN, sector, &[], &[len]).0, 1, "{sector} {len}");
        assert_eq!(ask(&mut guest, kind::OUT, sector, &[&vec![0; len as usize]], &[]).0, 1, "{sector} {len}");
    }
    assert_eq!(ask(&mut guest, kind::IN, 256, &[], &[]).0, 0, "nothing at the very end");
    assert_eq!(control.bytes(), before);
    assert!(guest.problems().is_empty(), "a guest's mistake is not the person's problem");
}

#[test]
fn the_name_is_given_in_twenty_bytes_and_other_requests_are_unsupported() {
    let mut guest = started(blk().0);
    assert_eq!(ask(&mut guest, kind::GET_ID, 0, &[], &[20]), (0, b"orangery-disk-0\0\0\0\0\0".to_vec()));
    assert_eq!(ask(&mut guest, kind::GET_ID, 0, &[], &[4]), (0, b"oran".to_vec()));
    for kind in [2, 3, 5, 9, 10, 12, 14, 16, u32::MAX] {
        assert_eq!(ask(&mut guest, kind, 0, &[], &[512]).0, 2, "{kind}");
    }
    let mut guest = started(readonly().0);
    assert_eq!(ask(&mut guest, kind::GET_ID, 0, &[], &[20]).1, b"a name of more than ");
}

#[test]
fn a_read_only_disk_is_never_written() {
    let (device, control) = readonly();
    let mut guest = started(device);
    assert_ne!(guest.offered() & feature::RO, 0);
    assert_eq!(ask(&mut guest, kind::OUT, 0, &[&[7; 512]], &[]).0, 1);
    assert_eq!(ask(&mut guest, kind::WRITE_ZEROES, 0, &[&range(0, 1, 0)], &[]).0, 2);
    assert_eq!(ask(&mut guest, kind::IN, 0, &[], &[512]), (0, vec![1; 512]));
    assert_eq!(control.bytes(), vec![1; 4096]);
}

#[test]
fn ranges_are_zeroed_and_discarded_and_nothing_beside_them() {
    let (device, control) = blk();
    let mut guest = started(device);
    let mut model = control.bytes();
    let zero = [range(3, 2, 0), range(10, 4, UNMAP), range(20, 0, 0)].concat();
    assert_eq!(ask(&mut guest, kind::WRITE_ZEROES, 0, &[&zero[..20], &zero[20..]], &[]).0, 0);
    model[3 * 512..5 * 512].fill(0);
    model[10 * 512..14 * 512].fill(0);
    assert_eq!(control.bytes(), model);
    assert_eq!(ask(&mut guest, kind::DISCARD, 0, &[&range(200, 8, 0)], &[]).0, 0);
    model[200 * 512..208 * 512].fill(0xdd);
    assert_eq!(control.bytes(), model);
}

#[test]
fn ranges_that_break_the_rules_do_nothing() {
    let (device, control) = blk();
    let mut guest = started(device);
    let before = control.bytes();
    let many = vec![0; RANGE * (MAX_RANGES + 1)];
    let cases: [(u32, &[u8], u8); 9] = [
        (kind::WRITE_ZEROES, &[], 1),
        (kind::WRITE_ZEROES, &[0; 15], 1),
        (kind::WRITE_ZEROES, &many, 1),
        (kind::WRITE_ZEROES, &range(255, 2, 0), 1),
        (kind::WRITE_ZEROES, &range(u64::MAX, u32::MAX, 0), 1),
        (kind::WRITE_ZEROES, &range(0, 1, 2), 2),
        (kind::DISCARD, &range(0, 1, UNMAP), 2),
        (kind::DISCARD, &range(0, u32::MAX, 0), 1),
        // A good range before a bad one is left alone, too.
        (kind::DISCARD, &[range(0, 1, 0), range(256, 1, 0)].concat(), 1),
    ];
    for (kind, data, status) in cases {
        assert_eq!(ask(&mut guest, kind, 0, &[data], &[]).0, status, "{kind} {data:?}");
    }
    assert_eq!(control.bytes(), before);
}

#[test]
fn without_the_flush_feature_every_write_is_durable() {
    let (device, control) = blk();
    let mut guest = started(device);
    ask(&mut guest, kind::OUT, 0, &[&[1; 512]], &[]);
    ask(&mut guest, kind::FLUSH, 0, &[], &[]);
    assert_eq!(control.flushes(), (1, 0));
    let features = guest.offered() & !feature::FLUSH;
    guest.start_with(features);
    ask(&mut guest, kind::OUT, 0, &[&[1; 512]], &[]);
    ask(&mut guest, kind::WRITE_ZEROES, 0, &[&range(0, 1, 0)], &[]);
    assert_eq!(control.flushes(), (1, 2));
}

#[test]
fn a_request_without_a_header_or_room_for_its_status_stops_the_device() {
    for (readable, writable) in [(&[&[0; 8][..]][..], &[1][..]), (&[&[0; 16]], &[]), (&[&[0; 16], &[0; 512]], &[0])] {
        let mut guest = started(blk().0);
        assert!(guest.request(0, readable, writable).is_none());
        assert!(guest.needs_reset());
    }
}

#[test]
fn a_failing_host_fails_requests_and_is_complained_of_once() {
    let (device, control) = blk();
    let mut guest = started(device);
    control.fail(Some(|| DiskError::OutOfRange));
    assert_eq!(ask(&mut guest, kind::OUT, 0, &[&[1; 512]], &[]).0, 1);
    assert_eq!(guest.problems().len(), 1);
    control.fail(Some(|| DiskError::Shrunk));
    for _ in 0..3 {
        assert_eq!(ask(&mut guest, kind::IN, 0, &[], &[512]).0, 1);
    }
    let problems = guest.problems();
    assert!(problems.len() == 1 && problems[0].contains("cut short"), "{problems:?}");
    assert!(guest.stalls().is_empty());
    control.fail(None);
    assert_eq!(ask(&mut guest, kind::IN, 0, &[], &[512]).0, 0);
}

/// Offers writes of a sector each, filled with their number, from sector 0 on.
fn offer_writes(guest: &mut Guest<Blk>, count: u8) {
    for sector in 0..count {
        let head = header(kind::OUT, u64::from(sector));
        guest.put(0, Segments { readable: &[&head, &[sector; 512]], writable: &[1] }).unwrap();
    }
    guest.kick(0);
}

/// Takes completions until there are no more, all of them good; how many.
fn all_good(guest: &mut Guest<Blk>) -> usize {
    std::iter::from_fn(|| guest.take_used(0)).inspect(|(_, len, answer)| assert_eq!((*len, answer[0]), (1, 0))).count()
}

#[test]
fn a_full_host_pauses_the_machine_and_no_write_fails_or_is_lost() {
    let (device, control) = blk();
    let mut guest = started(device);
    control.fail(Some(|| DiskError::Full));
    offer_writes(&mut guest, 5);
    assert_eq!(all_good(&mut guest), 0, "nothing completes");
    let stalls = guest.stalls();
    assert!(stalls.len() == 1 && stalls[0].contains("no space left"), "{stalls:?}");
    offer_writes(&mut guest, 5);
    assert!(guest.stalls().is_empty() && guest.problems().is_empty(), "it was said");
    // Still full: the machine is paused once more.
    guest.pause();
    guest.resume();
    assert_eq!((all_good(&mut guest), guest.stalls().len()), (0, 1));
    guest.pause();
    control.fail(None);
    guest.resume();
    assert_eq!(all_good(&mut guest), 10);
    for sector in 0..5 {
        assert_eq!(control.bytes()[sector * 512..][..512], [sector as u8; 512]);
    }
    assert!(guest.stalls().is_empty());
}

#[test]
fn a_checkpoint_of_a_stalled_device_keeps_its_requests() {
    let (device, control) = blk();
    let mut guest = started(device);
    control.fail(Some(|| DiskError::Full));
    offer_writes(&mut guest, 3);
    let (other, control) = blk();
    guest.move_to(other, None);
    assert_eq!(all_good(&mut guest), 3);
    assert_eq!(control.bytes()[1024..1536], [2; 512]);
}

#[test]
fn a_stalled_device_that_is_reset_starts_afresh() {
    let (device, control) = blk();
    let mut guest = started(device);
    control.fail(Some(|| DiskError::Full));
    offer_writes(&mut guest, 3);
    control.fail(None);
    guest.start();
    assert_eq!(all_good(&mut guest), 0);
    assert_eq!(ask(&mut guest, kind::IN, 0, &[], &[512]).0, 0);
}

#[test]
fn a_pause_waits_for_what_is_in_flight_and_completes_it() {
    let (device, control) = blk();
    let mut guest = started(device);
    control.hold(true);
    let head = header(kind::IN, 1);
    let first = guest.put(0, Segments { readable: &[&head], writable: &[512, 1] });
    guest.kick(0);
    assert!(guest.take_used(0).is_none());
    assert_eq!(control.held(), 1);
    guest.pause();
    let (used, len, answer) = guest.take_used(0).expect("completed by the pause");
    assert_eq!((Some(used), len), (first, 513));
    assert_eq!(answer[..512], control.bytes()[512..1024]);
    guest.resume();
    assert!(guest.take_used(0).is_none());
}

#[test]
fn a_device_that_failed_still_finishes_its_disks_work_before_it_stops() {
    let (device, control) = blk();
    let mut guest = started(device);
    control.hold(true);
    let head = header(kind::IN, 1);
    guest.put(0, Segments { readable: &[&head], writable: &[512, 1] });
    guest.kick(0);
    guest.descriptor(0, 200, u64::MAX, 16, 0, 0);
    guest.offer(0, 200);
    guest.kick(0);
    assert!(guest.needs_reset());
    assert_eq!(control.held(), 1);
    guest.pause();
    assert_eq!(control.held(), 0);
}

#[test]
fn a_driver_that_never_waits_has_no_more_than_a_queue_in_flight() {
    let (device, control) = blk();
    let mut guest = started(device);
    control.hold(true);
    let head = header(kind::IN, 1);
    let head = guest.put(0, Segments { readable: &[&head], writable: &[512, 1] }).unwrap();
    for _ in 0..1000 {
        guest.offer(0, head);
        guest.kick(0);
    }
    assert!(control.held() <= usize::from(QUEUE_SIZE), "{}", control.held());
}

#[test]
fn a_checkpoint_of_another_disk_is_refused() {
    let state = blk().0.save();
    assert!(blk().0.restore(state.clone()).is_ok());
    assert!(readonly().0.restore(state).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_disk_ends_as_its_model(
        ops in prop::collection::vec((0..4u8, 0..260u64, 0..12u32, any::<u8>(), any::<bool>()), 1..40),
    ) {
        let (device, control) = blk();
        let mut guest = started(device);
        let mut model = control.bytes();
        for (op, sector, count, byte, pause) in ops {
            let (from, to) = (sector as usize * 512, (sector as usize + count as usize) * 512);
            let inside = to <= model.len();
            let data = vec![byte; to - from];
            let (status, read) = match op {
                0 => ask(&mut guest, kind::IN, sector, &[], &[count * 512]),
                1 => ask(&mut guest, kind::OUT, sector, &[&data], &[]),
                2 => ask(&mut guest, kind::WRITE_ZEROES, 0, &[&range(sector, count, u32::from(byte & 1))], &[]),
                _ => ask(&mut guest, kind::FLUSH, 0, &[], &[]),
            };
            prop_assert_eq!(status == 0, inside || op == 3);
            if inside {
                match op {
                    0 => prop_assert!(read == model[from..to]),
                    1 => model[from..to].copy_from_slice(&data),
                    2 => model[from..to].fill(0),
                    _ => {}
                }
            }
            if pause {
                guest.pause();
                guest.resume();
            }
        }
        prop_assert!(control.bytes() == model);
    }
}
