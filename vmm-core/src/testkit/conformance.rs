//! The tests that every virtio device passes, whatever it does: hostile drivers, resets, pauses, checkpoints.
//! `virtio_conformance!(name, constructor)` makes them all.

use super::guest::{Guest, Segments};
use crate::base::Component;
use crate::virtio::{Device, feature};

/// Makes the conformance tests of a device: `virtio_conformance!(rng, || Rng::new())`.
#[macro_export]
macro_rules! virtio_conformance {
    ($name:ident, $make:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            $crate::virtio_conformance!(@tests $make,
                features_are_negotiated_by_the_rules
                registers_survive_any_access
                a_reset_forgets_everything_and_the_device_works_again
                rings_outside_ram_are_refused_at_the_start
                an_index_far_ahead_stops_the_device_until_its_reset
                a_descriptor_outside_its_table_stops_the_device
                a_looping_chain_stops_the_device
                a_buffer_outside_ram_stops_the_device
                malformed_indirect_tables_stop_the_device
                a_readable_descriptor_behind_a_writable_one_stops_the_device
                no_chain_is_completed_twice_by_a_driver_that_sends_anything
                a_pause_loses_nothing
                a_checkpoint_restores_to_the_same_state
            );
        }
    };
    (@tests $make:expr, $($test:ident)*) => {
        $(#[test]
        fn $test() {
            $crate::testkit::$test(&$make);
        })*
    };
}

/// A constructor of the device under test.
pub type Make<'a, D> = &'a dyn Fn() -> D;

fn started<D: Device>(make: Make<'_, D>) -> Guest<D> {
    let mut guest = Guest::new(make());
    guest.start();
    guest.problems();
    guest
}

/// After a breach: the device says so, stays down, and comes back after a reset.
fn assert_stopped<D: Device>(guest: &mut Guest<D>) {
    assert!(guest.needs_reset(), "the device takes what it must refuse");
    assert_eq!(guest.problems().len(), 1, "one breach, one problem");
    guest.kick(0);
    assert!(guest.problems().is_empty());
    guest.reset();
    guest.start();
    assert!(!guest.needs_reset());
}

/// See the macro.
pub fn features_are_negotiated_by_the_rules<D: Device>(make: Make<'_, D>) {
    let mut guest = Guest::new(make());
    let offered = guest.offered();
    assert_ne!(offered & feature::VERSION_1, 0);
    assert!(guest.negotiate(offered));
    assert!(!guest.negotiate(offered & !feature::VERSION_1), "a legacy driver is accepted");
    assert!(!guest.negotiate(offered | 1 << 63), "a feature that was not offered is accepted");
    guest.write_common(0x14, &[15]);
    assert_eq!(guest.status() & 4, 0, "the driver is up without its features");
}

/// See the macro.
pub fn registers_survive_any_access<D: Device>(make: Make<'_, D>) {
    let mut guest = Guest::new(make());
    for started in [false, true] {
        if started {
            guest.start();
        }
        for offset in (0..0x40).chain(0x1000..0x1008).chain(0x2000..0x2100).chain(0x2ff8..0x3010).chain(0x7ff8..0x8040)
        {
            for len in [1, 2, 4, 8] {
                let mut data = [0; 8];
                guest.read(offset, &mut data[..len]);
                if offset >= 0x40 && !(0x8000..0x9000).contains(&offset) {
                    guest.write(offset, &data[..len]);
                    guest.write(offset, &[0xa5; 8][..len]);
                }
            }
        }
        guest.run();
    }
}

/// See the macro.
pub fn a_reset_forgets_everything_and_the_device_works_again<D: Device>(make: Make<'_, D>) {
    let fresh = Guest::new(make());
    let mut common = ([0; 0x38], [0; 0x38]);
    fresh.read(0, &mut common.0);
    let mut guest = started(make);
    guest.reset();
    guest.write_common(0, &[0; 4]);
    guest.write_common(8, &[0; 4]);
    guest.write_common(0x16, &[0; 2]);
    guest.read(0, &mut common.1);
    // The generation counts on.
    common.0[0x15] = common.1[0x15];
    assert_eq!(common.0, common.1);
    guest.start();
    assert!(!guest.needs_reset());
}

/// See the macro.
pub fn rings_outside_ram_are_refused_at_the_start<D: Device>(make: Make<'_, D>) {
    for field in [0x20, 0x28, 0x30] {
        for address in [u64::MAX - 15, 0xc000_0000, (16 << 20) - 16] {
            let mut guest = Guest::new(make());
            let features = guest.offered();
            assert!(guest.negotiate(features));
            guest.set_up_queues();
            guest.write_common(0x16, &[0; 2]);
            guest.write_common(0x1c, &[0; 2]);
            guest.write_common(field, &address.to_le_bytes());
            guest.write_common(0x1c, &[1, 0]);
            // An enabled queue can't be changed; only a reset disables it.
            guest.reset();
            assert!(guest.negotiate(features));
            guest.write_common(0x16, &[0; 2]);
            for (f, at) in [(0x20, 0x1_0000u64), (0x28, 0x1_4000), (0x30, 0x1_8000)] {
                guest.write_common(f, &if f == field { address } else { at }.to_le_bytes());
            }
            guest.write_common(0x1c, &[1, 0]);
            guest.go();
            assert!(guest.needs_reset(), "field {field:#x} at {address:#x}");
        }
    }
}

/// See the macro.
pub fn an_index_far_ahead_stops_the_device_until_its_reset<D: Device>(make: Make<'_, D>) {
    let mut guest = started(make);
    guest.set_avail_index(0, 0x7fff);
    guest.kick(0);
    // A device may leave a queue alone until it has something for it; then it never saw the index.
    if guest.needs_reset() {
        assert_stopped(&mut guest);
    }
}

/// Offers a malformed chain on every queue; queues that a device takes buffers from must stop it.
fn malformed<D: Device>(make: Make<'_, D>, corrupt: impl Fn(&mut Guest<D>, usize)) {
    let mut stopped = 0;
    let queues = usize::from(Guest::new(make()).queue_count());
    for queue in 0..queues {
        let mut guest = started(make);
        corrupt(&mut guest, queue);
        guest.offer(queue, 0);
        guest.kick(queue);
        if guest.needs_reset() {
            stopped += 1;
            assert_stopped(&mut guest);
        }
    }
    assert!(stopped > 0, "no queue of the device was stopped");
}

/// See the macro.
pub fn a_descriptor_outside_its_table_stops_the_device<D: Device>(make: Make<'_, D>) {
    malformed(make, |guest, queue| guest.descriptor(queue, 0, 0x40_0000, 16, 1, 0xffff));
}

/// See the macro.
pub fn a_looping_chain_stops_the_device<D: Device>(make: Make<'_, D>) {
    malformed(make, |guest, queue| {
        guest.descriptor(queue, 0, 0x40_0000, 16, 1, 1);
        guest.descriptor(queue, 1, 0x40_0000, 16, 1, 0);
    });
}

/// See the macro.
pub fn a_buffer_outside_ram_stops_the_device<D: Device>(make: Make<'_, D>) {
    for (address, len) in [(u64::MAX - 4, 16), (0xffff_0000, 16), ((16 << 20) - 8, 16), (0, u32::MAX)] {
        for flags in [0, 2] {
            malformed(make, |guest, queue| guest.descriptor(queue, 0, address, len, flags, 0));
        }
    }
}

/// See the macro.
pub fn malformed_indirect_tables_stop_the_device<D: Device>(make: Make<'_, D>) {
    for (address, len, flags) in
        [(0x40_0000, 0, 4), (0x40_0000, 15, 4), (0x40_0000, 16 * 2000, 4), (u64::MAX - 15, 16, 4), (0x40_0000, 16, 5)]
    {
        malformed(make, |guest, queue| guest.descriptor(queue, 0, address, len, flags, 0));
    }
    // A table in a table.
    malformed(make, |guest, queue| {
        guest.descriptor(queue, 0, 0x40_0000, 16, 4, 0);
        let nested: [u64; 2] = [0x40_1000, 16 | 4 << 32];
        guest.memory.write_obj(crate::base::GuestAddress(0x40_0000), nested).expect("RAM");
    });
}

/// See the macro.
pub fn a_readable_descriptor_behind_a_writable_one_stops_the_device<D: Device>(make: Make<'_, D>) {
    malformed(make, |guest, queue| {
        guest.descriptor(queue, 0, 0x40_0000, 16, 1 | 2, 1);
        guest.descriptor(queue, 1, 0x40_1000, 16, 0, 0);
    });
}

/// See the macro.
pub fn no_chain_is_completed_twice_by_a_driver_that_sends_anything<D: Device>(make: Make<'_, D>) {
    for seed in 1..24u64 {
        let mut bytes = vec![0u8; 600];
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for byte in &mut bytes {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state as u8;
        }
        drive(make, &bytes);
    }
}

/// A driver that does what `bytes` say: the body of property tests and fuzz targets. Panics where a device breaks the
/// framework's promises.
pub fn drive<D: Device>(make: Make<'_, D>, bytes: &[u8]) {
    let mut guest = Guest::new(make());
    let mut input = bytes.iter().copied();
    let mut next = || input.next();
    guest.start();
    let queues = usize::from(guest.queue_count());
    while let Some(op) = next() {
        let Some(queue) = next().map(|q| usize::from(q) % queues) else { return };
        match op % 16 {
            0 => guest.reset_and_start(),
            1 => {
                guest.pause();
                guest.resume();
            }
            2 => {
                let offset = next().unwrap_or(0);
                let value = [next().unwrap_or(0); 4];
                guest.write_device_config(u32::from(offset), &value);
                guest.run();
            }
            3 => {
                // A raw descriptor, anything at all.
                let word = |n: &mut dyn FnMut() -> Option<u8>| u64::from_le_bytes([0; 8].map(|_: u8| n().unwrap_or(0)));
                let (address, rest) = (word(&mut next), word(&mut next));
                let address = if op & 0x80 != 0 { address } else { address & 0xff_ffff };
                guest.descriptor(queue, 0, address, rest as u32 & 0xffff, (rest >> 32) as u16 & 7, (rest >> 48) as u16);
            }
            _ => {
                let lens: Vec<u8> = (0..op >> 4 & 3).map(|_| next().unwrap_or(1)).collect();
                let data: Vec<Vec<u8>> =
                    lens.iter().map(|&len| (0..len).map(|_| next().unwrap_or(0)).collect()).collect();
                let readable: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
                let room = next().map_or(0, |b| u32::from(b) * 8);
                let writable = [room, 1];
                let count = usize::from(op >> 6 & 3).min(2);
                let segments = Segments { readable: &readable, writable: &writable[..count] };
                if guest.put(queue, segments).is_some() {
                    guest.kick(queue);
                }
            }
        }
        if guest.needs_reset() {
            guest.reset_and_start();
            continue;
        }
        for queue in 0..queues {
            while guest.take_used_leniently(queue) {}
        }
    }
}

impl<D: Device> Guest<D> {
    fn reset_and_start(&mut self) {
        self.reset();
        self.start();
    }

    /// Takes a completion, unless a hostile descriptor offered a head of its own making.
    fn take_used_leniently(&mut self, queue: usize) -> bool {
        self.take_used(queue).is_some()
    }
}

/// See the macro.
pub fn a_pause_loses_nothing<D: Device>(make: Make<'_, D>) {
    let mut guest = started(make);
    let mut offered = Vec::new();
    for queue in 0..usize::from(guest.queue_count()) {
        let head = guest.put(queue, Segments { readable: &[&[0; 64]], writable: &[64] });
        offered.push((queue, head));
    }
    guest.pause();
    guest.resume();
    for (queue, head) in offered {
        guest.kick(queue);
        if guest.needs_reset() {
            return;
        }
        if let Some((used, _, _)) = guest.take_used(queue) {
            assert_eq!(Some(used), head);
            assert!(guest.take_used(queue).is_none(), "completed twice");
        }
    }
}

/// See the macro.
pub fn a_checkpoint_restores_to_the_same_state<D: Device>(make: Make<'_, D>) {
    let mut guest = started(make);
    guest.move_to(make(), None);
    assert!(!guest.needs_reset());
    guest.reset();
    guest.start();
    guest.pause();
    let section = guest.transport.save().expect("a state");
    let mut damaged = section.clone();
    damaged.bytes.truncate(section.bytes.len() / 2);
    let other = Guest::new(make());
    assert!(other.transport.restore(&damaged).is_err(), "half a state is taken for a whole one");
    let newer = crate::base::Section { version: section.version + 1, ..section };
    assert!(other.transport.restore(&newer).is_err(), "a newer state is taken for an old one");
    // A driver that asks for features which nobody offered has not got them yet.
    let mut asking = Guest::new(make());
    asking.write_common(0x08, &[0; 4]);
    asking.write_common(0x0c, &[0xff; 4]);
    asking.move_to(make(), None);
}
