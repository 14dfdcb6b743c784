//! virtio memory balloon (virtio 1.2 §5.5): the guest names pages that it does not use, and the host gets them back.
//!
//! With free page reporting the guest's kernel does that by itself, whenever memory has been free for a while, and takes a
//! page again by touching it: an idle guest costs what it uses. No target size is ever asked of the guest.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use crate::base::{GuestAddress, SavedState, StateError};
use crate::virtio::{Chain, ConfigSpace, Device, Fault, Info, Io, Role, id};

/// Feature bits (§5.5.3). Without MUST_TELL_HOST a driver may use a page before it says so, which costs nothing here.
mod feature {
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    pub const REPORTING: u64 = 1 << 5;
}

/// Queues (§5.5.2).
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const QUEUE_SIZE: u16 = 128;

/// A page of the balloon, bytes, and its number's shift (§5.5.6).
const PAGE: u64 = 1 << PAGE_SHIFT;
const PAGE_SHIFT: u32 = 12;
/// Page numbers in one request. Linux sends 256; more would keep the thread from its other devices.
const MAX_PAGES: usize = 4096;

/// Offset of `actual` in struct virtio_balloon_config (§5.5.4). `num_pages` before it stays 0.
const ACTUAL: u64 = 4;

/// The device.
#[derive(Default)]
pub struct Balloon {
    config: Arc<Config>,
    /// The host's last failure was told.
    complained: bool,
}

/// What a checkpoint keeps: the size that the driver says its balloon has, in pages.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    actual: u32,
}

impl SavedState for BalloonState {
    const VERSION: u32 = 1;
}

/// The configuration registers: the driver writes its balloon's size.
#[derive(Default)]
struct Config {
    actual: AtomicU32,
}

impl ConfigSpace for Config {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let actual = self.actual.load(Ordering::Relaxed).to_le_bytes();
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = at.checked_sub(ACTUAL).and_then(|i| actual.get(i as usize)).copied().unwrap_or(0);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (ACTUAL, &[a, b, c, d]) = (offset, data) {
            self.actual.store(u32::from_le_bytes([a, b, c, d]), Ordering::Relaxed);
        }
    }

    fn reset(&self) {
        self.actual.store(0, Ordering::Relaxed);
    }
}

impl Balloon {
    /// Gives the host the pages whose numbers a request of the inflate queue lists (§5.5.6).
    fn inflate(&mut self, chain: &Chain, io: &mut Io<'_>) -> Result<(), Fault> {
        let mut reader = chain.reader();
        let count = reader.remaining() / size_of::<u32>();
        if count > MAX_PAGES {
            return Err(Fault::Request("a request lists more than 4096 pages"));
        }
        // Neighbours go back in one piece, in whichever direction the driver counts.
        let mut run: Range<u64> = 0..0;
        for _ in 0..count {
            let page = u64::from(u32::from_le(reader.read_obj()?)) << PAGE_SHIFT;
            io.memory().check(GuestAddress(page), PAGE as usize)?;
            if page == run.end {
                run.end += PAGE;
            } else if page + PAGE == run.start {
                run.start = page;
            } else {
                self.discard(run, io);
                run = page..page + PAGE;
            }
        }
        self.discard(run, io);
        Ok(())
    }

    /// Gives the host the free memory that a request of the reporting queue consists of (§5.5.6.7).
    fn report(&mut self, chain: &Chain, io: &mut Io<'_>) -> Result<(), Fault> {
        let mut writer = chain.writer();
        for (address, len) in writer.runs(writer.remaining())? {
            self.discard(address.0..address.0 + len as u64, io);
        }
        Ok(())
    }

    fn discard(&mut self, run: Range<u64>, io: &mut Io<'_>) {
        if run.is_empty() {
            return;
        }
        // The guest loses nothing but what the memory would have been worth to the host.
        if let Err(error) = io.memory().discard(GuestAddress(run.start), run.end - run.start)
            && !self.complained
        {
            io.problem(format!("the host could not take back memory that the guest does not use: {error}"));
            self.complained = true;
        }
    }
}

impl Device for Balloon {
    const INFO: Info = Info::new(id::BALLOON, "balloon", Role::Io);
    type State = BalloonState;

    fn features(&self) -> u64 {
        feature::DEFLATE_ON_OOM | feature::REPORTING
    }

    fn queues(&self) -> &[u16] {
        // The specification numbers the reporting queue 4; Linux leaves no gap for queues of features that are not
        // negotiated, and takes 2. Whatever comes after the first two is that queue.
        &[QUEUE_SIZE; 5]
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        self.config.clone()
    }

    fn on_queue(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Fault> {
        while let Some(chain) = io.pop(queue)? {
            match queue {
                INFLATE => self.inflate(&chain, io)?,
                // The pages come back when they are touched.
                DEFLATE => {}
                _ if io.features() & feature::REPORTING != 0 => self.report(&chain, io)?,
                _ => return Err(Fault::Request("free memory is reported without the feature")),
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.complained = false;
    }

    fn save(&self) -> BalloonState {
        let Balloon { config, complained: _ } = self;
        BalloonState { actual: config.actual.load(Ordering::Relaxed) }
    }

    fn restore(&mut self, state: BalloonState) -> Result<(), StateError> {
        let BalloonState { actual } = state;
        self.config.actual.store(actual, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::Guest;

    crate::virtio_conformance!(conformance, Balloon::default);

    /// Where the tests keep data: 8 MiB into RAM, away from the driver's rings and buffers.
    const DATA: u64 = 8 << 20;

    fn started() -> Guest<Balloon> {
        let mut guest = Guest::new(Balloon::default());
        guest.start();
        guest.memory.fill(GuestAddress(DATA), 0x10000, 0xab).unwrap();
        guest
    }

    /// Which pages from [`DATA`] on read as zeroes; the others must be as they were.
    fn empty(guest: &Guest<Balloon>) -> Vec<u64> {
        let page = |n: &u64| {
            let mut bytes = [0; PAGE as usize];
            guest.memory.read(GuestAddress(DATA + n * PAGE), &mut bytes).unwrap();
            assert!(bytes == [0; PAGE as usize] || bytes == [0xab; PAGE as usize], "page {n} is half empty");
            bytes[0] == 0
        };
        (0..16).filter(page).collect()
    }

    fn numbers(pages: &[u64]) -> Vec<u8> {
        pages.iter().flat_map(|n| ((DATA / PAGE + n) as u32).to_le_bytes()).collect()
    }

    /// Offers one piece of the guest's memory on a reporting queue.
    fn report(guest: &mut Guest<Balloon>, queue: usize, address: u64, len: u32) {
        guest.descriptor(queue, 0, address, len, 2, 0);
        guest.offer(queue, 0);
        guest.kick(queue);
    }

    #[test]
    fn inflated_pages_are_given_back_and_no_others() {
        let mut guest = started();
        let allocated = guest.memory.allocated().unwrap();
        guest.request(INFLATE, &[&numbers(&[1, 2, 3]), &numbers(&[9, 8, 7, 12])], &[]).unwrap();
        assert!(guest.memory.allocated().unwrap() + 6 * PAGE <= allocated);
        assert_eq!(empty(&guest), [1, 2, 3, 7, 8, 9, 12]);
    }

    #[test]
    fn memory_that_was_given_back_can_be_used_again() {
        let mut guest = started();
        guest.request(INFLATE, &[&numbers(&[4])], &[]).unwrap();
        guest.request(DEFLATE, &[&numbers(&[4])], &[]).unwrap();
        guest.memory.fill(GuestAddress(DATA + 4 * PAGE), PAGE as usize, 0xab).unwrap();
        assert_eq!(empty(&guest), [0; 0]);
    }

    #[test]
    fn reported_memory_is_given_back_whichever_queue_the_driver_takes_for_it() {
        for queue in 2..5 {
            let mut guest = started();
            let allocated = guest.memory.allocated().unwrap();
            report(&mut guest, queue, DATA + 2 * PAGE, 3 * PAGE as u32);
            assert!(guest.memory.allocated().unwrap() + 3 * PAGE <= allocated);
            assert_eq!(empty(&guest), [2, 3, 4]);
        }
    }

    #[test]
    fn only_whole_pages_of_a_report_are_given_back() {
        let mut guest = started();
        report(&mut guest, 2, DATA + 100, 3 * PAGE as u32);
        assert_eq!(empty(&guest), [1, 2]);
        report(&mut guest, 2, DATA + 8 * PAGE + 1, PAGE as u32);
        report(&mut guest, 2, DATA + 8 * PAGE, 0);
        assert_eq!(empty(&guest), [1, 2]);
        assert!(!guest.needs_reset());
    }

    #[test]
    fn pages_outside_ram_and_endless_lists_stop_the_device() {
        for list in [vec![0xff; 4], vec![0, 0, 0x10, 0], vec![0; 4 * (MAX_PAGES + 1)]] {
            let mut guest = started();
            guest.put(INFLATE, crate::testkit::Segments { readable: &[&list], writable: &[] }).unwrap();
            guest.kick(INFLATE);
            assert!(guest.needs_reset(), "{} bytes", list.len());
            assert_eq!(empty(&guest), [0; 0]);
        }
    }

    #[test]
    fn a_report_without_the_feature_stops_the_device() {
        let mut guest = Guest::new(Balloon::default());
        guest.start_with(feature::DEFLATE_ON_OOM);
        guest.memory.fill(GuestAddress(DATA), 0x10000, 0xab).unwrap();
        report(&mut guest, 4, DATA, PAGE as u32);
        assert!(guest.needs_reset());
        assert_eq!(empty(&guest), [0; 0]);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        /// Whatever is listed and reported, in whatever order: exactly the whole pages that were named are given back.
        #[test]
        fn exactly_the_pages_that_the_guest_names_are_given_back(
            lists in proptest::collection::vec(proptest::collection::vec(0u64..16, 0..8), 0..4),
            reports in proptest::collection::vec((0u64..0x10000, 0u64..0x8000), 0..4),
        ) {
            let mut guest = started();
            let mut named = std::collections::BTreeSet::new();
            for list in lists.iter().filter(|list| !list.is_empty()) {
                guest.request(INFLATE, &[&numbers(list)], &[]).unwrap();
                named.extend(list.iter().copied());
            }
            for (start, len) in reports {
                let len = len.min(0x10000 - start);
                report(&mut guest, 2, DATA + start, len as u32);
                named.extend(start.div_ceil(PAGE)..(start + len) / PAGE);
            }
            proptest::prop_assert!(!guest.needs_reset());
            proptest::prop_assert_eq!(empty(&guest), named.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_driver_s_size_reads_back_survives_a_checkpoint_and_ends_with_a_reset() {
        let mut guest = started();
        guest.write_device_config(ACTUAL as u32, &7u32.to_le_bytes());
        let read = |guest: &Guest<Balloon>| {
            let mut bytes = [0xff; 8];
            guest.read(0x2000, &mut bytes);
            bytes
        };
        assert_eq!(read(&guest), [0, 0, 0, 0, 7, 0, 0, 0]);
        guest.move_to(Balloon::default(), None);
        assert_eq!(read(&guest), [0, 0, 0, 0, 7, 0, 0, 0]);
        guest.reset();
        assert_eq!(read(&guest), [0; 8]);
    }
}
