//! The card on a wire in a test's hands.

use proptest::prelude::*;

use super::*;
use crate::backend::net::{FakeNet, Unplugged, Wire};
use crate::testkit::{Guest, Segments};

const OWN: Mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

fn net() -> (Net, Wire) {
    let (port, wire) = FakeNet::new();
    (Net::new(Box::new(port), OWN).unwrap(), wire)
}

crate::virtio_conformance!(conformance, || net().0);

fn started() -> (Guest<Net>, Wire) {
    let (device, wire) = net();
    let mut guest = Guest::new(device);
    guest.start();
    (guest, wire)
}

/// A frame to an address, `len` bytes of payload, behind an empty header.
fn frame(to: Mac, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes.extend(to);
    bytes.extend([2, 0, 0, 0, 0, 9, 8, 0]);
    bytes.extend((0..len).map(|i| (i * 7) as u8));
    bytes
}

fn offer(guest: &mut Guest<Net>, room: u32) {
    guest.put(RECEIVE, Segments { readable: &[], writable: &[room] }).unwrap();
    guest.kick(RECEIVE);
}

fn received(guest: &mut Guest<Net>) -> Option<Vec<u8>> {
    let (_, len, mut bytes) = guest.take_used(RECEIVE)?;
    bytes.truncate(len as usize);
    Some(bytes)
}

fn control(guest: &mut Guest<Net>, command: &[u8]) -> u8 {
    let (head, data) = command.split_at(2);
    let parts: &[&[u8]] = if data.is_empty() { &[head] } else { &[head, data] };
    let answer = guest.request(CONTROL, parts, &[1]).unwrap();
    assert_eq!(answer.len(), 1);
    answer[0]
}

#[test]
fn frames_go_out_as_they_are_however_they_are_cut() {
    let (mut guest, wire) = started();
    let bytes = frame([1; 6], 100);
    for cut in [&[12usize][..], &[1, 12, 13], &[]] {
        let mut parts = Vec::new();
        let mut at = 0;
        for &end in cut.iter().chain([&bytes.len()]) {
            parts.push(&bytes[at..end]);
            at = end;
        }
        assert_eq!(guest.request(TRANSMIT, &parts, &[]), Some(vec![]));
        assert_eq!(wire.take(), [(vec![0; HEADER], bytes[HEADER..].to_vec())]);
    }
}

#[test]
fn frames_come_in_with_their_header_and_the_count_of_buffers() {
    let (mut guest, wire) = started();
    let bytes = frame(OWN, 60);
    offer(&mut guest, 2048);
    wire.send(&[&bytes]);
    guest.run();
    let seen = received(&mut guest).unwrap();
    assert_eq!(seen[10..12], [1, 0]);
    assert_eq!(seen[12..], bytes[12..]);
}

#[test]
fn a_frame_is_spread_over_buffers_and_waits_until_there_are_enough() {
    let (mut guest, wire) = started();
    let bytes = frame(OWN, 1000);
    offer(&mut guest, 400);
    offer(&mut guest, 400);
    wire.send(&[&bytes, &frame(OWN, 20)]);
    guest.run();
    assert_eq!(received(&mut guest), None);
    offer(&mut guest, 400);
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.extend(received(&mut guest).unwrap());
    }
    assert_eq!((seen[10..12].to_vec(), &seen[12..]), (vec![3, 0], &bytes[12..]));
    assert_eq!(received(&mut guest), None);
    offer(&mut guest, 400);
    assert_eq!(received(&mut guest).unwrap().len(), HEADER + 14 + 20);
}

#[test]
fn without_merging_a_frame_that_does_not_fit_is_lost_and_its_buffer_is_not() {
    let (device, wire) = net();
    let mut guest = Guest::new(device);
    let features = guest.offered() & !feature::MRG_RXBUF;
    guest.start_with(features);
    offer(&mut guest, 400);
    wire.send(&[&frame(OWN, 1000), &frame(OWN, 30)]);
    guest.run();
    assert_eq!(received(&mut guest).unwrap().len(), HEADER + 14 + 30);
}

#[test]
fn a_burst_longer_than_a_turn_arrives_whole() {
    let (mut guest, wire) = started();
    for _ in 0..250 {
        offer(&mut guest, 200);
    }
    let frames: Vec<Vec<u8>> = (0..1000).map(|i| frame(OWN, i % 90)).collect();
    wire.send(&frames.iter().map(Vec::as_slice).collect::<Vec<_>>());
    guest.run();
    let mut count = 0;
    while let Some(seen) = received(&mut guest) {
        assert_eq!(seen[12..], frames[count][12..]);
        count += 1;
        offer(&mut guest, 200);
    }
    assert_eq!((count, wire.waiting()), (1000, 0));
}

#[test]
fn a_full_network_keeps_frames_in_order_until_there_is_room() {
    let (mut guest, wire) = started();
    wire.fill(true);
    let frames: Vec<Vec<u8>> = (0..5).map(|i| frame([i; 6], 20)).collect();
    for bytes in &frames {
        guest.put(TRANSMIT, Segments { readable: &[bytes], writable: &[] }).unwrap();
        guest.kick(TRANSMIT);
    }
    assert!(wire.take().is_empty() && guest.take_used(TRANSMIT).is_none());
    wire.fill(false);
    guest.run();
    let sent: Vec<Vec<u8>> = wire.take().into_iter().map(|s| s.1).collect();
    assert_eq!(sent, frames.iter().map(|f| f[HEADER..].to_vec()).collect::<Vec<_>>());
    assert_eq!((0..5).filter(|_| guest.take_used(TRANSMIT).is_some()).count(), 5);
}

/// A frame with a header of flags, segmentation, header length, segment size, checksum start and offset.
fn with_header(flags: u8, kind: u8, size: u16, start: u16, offset: u16) -> Vec<u8> {
    let mut bytes = frame([1; 6], 100);
    bytes[0] = flags;
    bytes[1] = kind;
    bytes[4..6].copy_from_slice(&size.to_le_bytes());
    bytes[6..8].copy_from_slice(&start.to_le_bytes());
    bytes[8..10].copy_from_slice(&offset.to_le_bytes());
    bytes
}

#[test]
fn headers_that_lie_are_lost_and_honest_ones_are_passed_on() {
    let (mut guest, wire) = started();
    let good = [(1, 0, 0, 34, 16), (1, TCP4, 40, 34, 16), (1, TCP6, 1, 54, 16), (1, UDP, 9, 34, 6), (1, 0, 0, 112, 0)];
    for (flags, kind, size, start, offset) in good {
        let bytes = with_header(flags, kind, size, start, offset);
        guest.request(TRANSMIT, &[&bytes], &[]).unwrap();
        assert_eq!(wire.take(), [(bytes[..HEADER].to_vec(), bytes[HEADER..].to_vec())]);
    }
    let bad = [
        (2, 0, 0, 0, 0),
        (1, 0, 0, 113, 0),
        (1, 0, 0, u16::MAX, u16::MAX),
        (0, TCP4, 40, 34, 16),
        (1, TCP4, 0, 34, 16),
        (1, 2, 40, 34, 16),
        (1, 3, 40, 34, 16),
        (1, TCP4 | 0x80, 40, 34, 16),
        (1, u8::MAX, 40, 34, 16),
    ];
    for (flags, kind, size, start, offset) in bad {
        let bytes = with_header(flags, kind, size, start, offset);
        assert_eq!(guest.request(TRANSMIT, &[&bytes], &[]), Some(vec![]));
        assert!(wire.take().is_empty(), "{flags} {kind}");
    }
    for len in [HEADER, HEADER + 13, MAX_FRAME + 1] {
        assert_eq!(guest.request(TRANSMIT, &[&vec![0; len]], &[]), Some(vec![]));
        assert!(wire.take().is_empty(), "{len}");
    }
    // What was not agreed on is not done.
    guest.start_with(feature::MAC);
    let bytes = with_header(1, 0, 0, 34, 16);
    guest.request(TRANSMIT, &[&bytes], &[]).unwrap();
    assert!(wire.take().is_empty());
}

#[test]
fn the_network_sends_only_what_the_driver_can_take() {
    let (mut guest, wire) = started();
    assert_eq!(wire.accepted(), Offloads { checksum: true, tso4: true, tso6: true, uso: true });
    guest.start_with(feature::GUEST_TSO4);
    assert_eq!(wire.accepted(), Offloads::default(), "nothing without checksums");
    guest.start_with(feature::GUEST_CSUM | feature::GUEST_TSO6);
    assert_eq!(wire.accepted(), Offloads { checksum: true, tso6: true, ..Offloads::default() });
    guest.reset();
    assert_eq!(wire.accepted(), Offloads::default());
}

#[test]
fn only_wanted_addresses_come_through_once_the_driver_says_so() {
    let (mut guest, wire) = started();
    let wanted = |guest: &mut Guest<Net>, to: Mac| {
        wire.send(&[&frame(to, 10)]);
        offer(guest, 100);
        let came = received(guest).is_some();
        if !came {
            // Use the buffer up for the next one.
            wire.send(&[&frame([0xff; 6], 10)]);
            guest.run();
            assert!(received(guest).is_some());
        }
        came
    };
    let (other, group) = ([2, 0, 0, 0, 0, 7], [1, 0, 0x5e, 0, 0, 1]);
    assert!(wanted(&mut guest, other) && wanted(&mut guest, group));
    assert_eq!(control(&mut guest, &[0, 0, 0]), 0);
    assert!(wanted(&mut guest, OWN) && !wanted(&mut guest, other) && !wanted(&mut guest, group));
    let mut table = vec![1, 0, 1, 0, 0, 0];
    table.extend(other);
    table.extend([1, 0, 0, 0]);
    table.extend(group);
    assert_eq!(control(&mut guest, &table), 0);
    assert!(wanted(&mut guest, other) && wanted(&mut guest, group));
    assert_eq!(control(&mut guest, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 0);
    assert!(!wanted(&mut guest, other) && !wanted(&mut guest, group));
    assert_eq!(control(&mut guest, &[0, 1, 1]), 0);
    assert!(!wanted(&mut guest, other) && wanted(&mut guest, group));
    // More than are kept: all of the kind.
    let mut table = vec![1, 0, 65, 0, 0, 0];
    table.extend([2; 65 * 6]);
    table.extend([0; 4]);
    assert_eq!(control(&mut guest, &table), 0);
    assert!(wanted(&mut guest, other));
}

#[test]
fn malformed_and_unknown_commands_change_nothing() {
    let (mut guest, _) = started();
    for command in
        [&[0, 0, 2][..], &[0, 2, 1], &[9, 9, 9], &[1, 0, 255, 255, 255, 255], &[1, 0, 2, 0, 0, 0, 1], &[1, 1, 5]]
    {
        assert_eq!(control(&mut guest, command), 1, "{command:?}");
    }
    let mut mac = [0; 6];
    guest.read_device_config(0, &mut mac);
    assert_eq!(mac, OWN);
    assert_eq!(control(&mut guest, &[1, 1, 2, 3, 4, 5, 6, 7]), 0);
    guest.read_device_config(0, &mut mac);
    assert_eq!(mac, [2, 3, 4, 5, 6, 7]);
    guest.reset();
    guest.read_device_config(0, &mut mac);
    assert_eq!(mac, OWN);
}

#[test]
fn a_guest_that_was_restored_announces_itself() {
    let (mut guest, _) = started();
    control(&mut guest, &[0, 0, 0]);
    control(&mut guest, &[1, 1, 2, 3, 4, 5, 6, 7]);
    let (device, wire) = net();
    guest.move_to(device, None);
    let mut config = [0; 12];
    guest.read_device_config(0, &mut config);
    assert_eq!((&config[..6], config[6], config[10..].to_vec()), (&[2, 3, 4, 5, 6, 7][..], 3, vec![0xdc, 5]));
    assert!(guest.msi.take().iter().any(|m| m.data == 0), "a configuration interrupt");
    assert_eq!(control(&mut guest, &[3, 0]), 0);
    guest.read_device_config(0, &mut config);
    assert_eq!(config[6], 1, "announced");
    assert_eq!(wire.accepted(), Offloads { checksum: true, tso4: true, tso6: true, uso: true });
}

#[test]
fn a_guest_that_goes_on_without_a_network_sees_its_link_go_down_and_can_send_in_vain() {
    let (mut guest, _) = started();
    let unplugged = Net::new(Box::new(Unplugged::new().unwrap()), [2, 9, 9, 9, 9, 9]).unwrap();
    guest.move_to(unplugged, None);
    let mut config = [0; 12];
    guest.read_device_config(0, &mut config);
    assert_eq!((&config[..6], config[6] & LINK_UP as u8), (&OWN[..], 0));
    assert!(guest.msi.take().iter().any(|m| m.data == 0), "a configuration interrupt");
    for _ in 0..3 {
        assert_eq!(guest.request(TRANSMIT, &[&frame([1; 6], 50)], &[]), Some(vec![]));
    }
    offer(&mut guest, 2000);
    assert!(received(&mut guest).is_none() && guest.problems().is_empty());
}

#[test]
fn a_derived_address_is_a_single_cards_and_differs_between_interfaces() {
    let (first, second) = (derived_mac("tap0"), derived_mac("tap1"));
    assert_ne!(first, second);
    assert_eq!(first, derived_mac("tap0"));
    assert_eq!(first[0] & 3, 2, "local, and no group's");
}

#[test]
fn a_network_that_is_gone_is_complained_of_once() {
    let (mut guest, wire) = started();
    wire.cut();
    guest.run();
    assert_eq!(guest.problems().len(), 1);
    for _ in 0..3 {
        assert_eq!(guest.request(TRANSMIT, &[&frame([1; 6], 50)], &[]), Some(vec![]));
    }
    assert_eq!(guest.problems().len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_frame_arrives_once_and_whole(
        lens in prop::collection::vec(0..4000usize, 1..30), rooms in prop::collection::vec(12..3000u32, 1..8),
    ) {
        let (mut guest, wire) = started();
        let frames: Vec<Vec<u8>> = lens.iter().map(|&len| frame(OWN, len)).collect();
        wire.send(&frames.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let mut rooms = rooms.iter().cycle();
        for bytes in &frames {
            let mut seen: Vec<u8> = Vec::new();
            let mut left = 1u16;
            while left > 0 {
                let part = loop {
                    match received(&mut guest) {
                        Some(part) => break part,
                        None => offer(&mut guest, *rooms.next().unwrap()),
                    }
                };
                if seen.is_empty() {
                    left = u16::from_le_bytes([part[10], part[11]]);
                }
                seen.extend(part);
                left -= 1;
            }
            prop_assert!(seen[12..] == bytes[12..]);
        }
        prop_assert_eq!(wire.waiting(), 0);
    }
}
