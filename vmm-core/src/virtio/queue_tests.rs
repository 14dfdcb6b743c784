use super::*;
use crate::virtio::feature;

const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;

struct Ring {
    memory: GuestMemory,
    queue: Queue,
    avail: u16,
}

fn ring(features: u64) -> Ring {
    let memory = GuestMemory::new(1 << 20).unwrap();
    let state = QueueState {
        ready: true,
        size: 8,
        desc: DESC,
        avail: AVAIL,
        used: USED,
        next_avail: 0,
        next_used: 0,
        returned: vec![],
    };
    let queue = Queue::new(state, features, &memory).unwrap();
    Ring { memory, queue, avail: 0 }
}

impl Ring {
    fn descriptor(&self, index: u64, address: u64, len: u32, flags: u16, next: u16) {
        let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.memory.write_obj(GuestAddress(DESC + 16 * index), [address, rest]).unwrap();
    }

    fn offer(&mut self, head: u16) {
        let at = AVAIL + 4 + 2 * u64::from(self.avail % 8);
        self.memory.write_obj(GuestAddress(at), head).unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.memory.store_u16(GuestAddress(AVAIL + 2), self.avail).unwrap();
    }

    fn pop(&mut self) -> Result<Option<Chain>, Fault> {
        self.queue.pop(&self.memory)
    }

    fn used(&self) -> (u16, [u32; 2]) {
        let index = self.memory.load_u16(GuestAddress(USED + 2)).unwrap();
        let at = USED + 4 + 8 * u64::from(index.wrapping_sub(1) % 8);
        (index, self.memory.read_obj(GuestAddress(at)).unwrap())
    }
}

#[test]
fn a_chain_is_read_written_and_completed() {
    let mut ring = ring(0);
    ring.memory.write(GuestAddress(0x8000), b"abcdef").unwrap();
    ring.descriptor(0, 0x8000, 4, 1, 3);
    ring.descriptor(3, 0x8004, 2, 1, 5);
    ring.descriptor(5, 0x9000, 8, 2, 0);
    ring.offer(0);
    let chain = ring.pop().unwrap().unwrap();
    let mut text = [0; 6];
    chain.reader().read_exact(&mut text).unwrap();
    assert_eq!(&text, b"abcdef");
    let mut writer = chain.writer();
    writer.write_all(b"xyz").unwrap();
    let written = writer.written();
    chain.complete(written);
    ring.queue.flush(&ring.memory).unwrap();
    assert_eq!(ring.used(), (1, [0, 3]));
    assert!(ring.pop().unwrap().is_none());
}

#[test]
fn a_chain_dropped_by_the_device_is_completed_with_length_zero() {
    let mut ring = ring(0);
    ring.descriptor(2, 0x8000, 4, 0, 0);
    ring.offer(2);
    drop(ring.pop().unwrap());
    ring.queue.flush(&ring.memory).unwrap();
    assert_eq!(ring.used(), (1, [2, 0]));
}

#[test]
fn a_chain_put_back_is_popped_again() {
    let mut ring = ring(0);
    ring.descriptor(2, 0x8000, 4, 0, 0);
    ring.offer(2);
    let chain = ring.pop().unwrap().unwrap();
    ring.queue.put_back(chain);
    ring.queue.flush(&ring.memory).unwrap();
    assert_eq!(ring.used().0, 0);
    assert!(ring.pop().unwrap().is_some());
}

#[test]
fn chains_put_back_in_any_order_are_popped_before_new_ones() {
    let mut ring = ring(0);
    for head in 0..4 {
        ring.descriptor(u64::from(head), 0x8000, 4 + head, 0, 0);
    }
    (0..3).for_each(|head| ring.offer(head));
    let [first, second, third] = [(); 3].map(|()| ring.pop().unwrap().unwrap());
    ring.queue.put_back(third);
    ring.queue.put_back(first);
    second.complete(0);
    ring.offer(3);
    let state = ring.queue.state().clone();
    assert_eq!((state.returned.as_slice(), state.next_avail), (&[2, 0][..], 3));
    let lengths: Vec<usize> =
        std::iter::from_fn(|| ring.pop().unwrap()).map(|chain| chain.reader().remaining()).collect();
    assert_eq!(lengths, [4, 6, 7]);
}

#[test]
fn an_indirect_table_is_followed_only_when_negotiated() {
    for (features, taken) in [(feature::INDIRECT_DESC, true), (0, false)] {
        let mut ring = ring(features);
        ring.descriptor(0, 0x8000, 32, 4, 0);
        let table: [u64; 4] = [0x9000, 4 | 1 << 32 | 1 << 48, 0xa000, 8 | 2 << 32];
        ring.memory.write_obj(GuestAddress(0x8000), table).unwrap();
        ring.offer(0);
        match ring.pop() {
            Ok(Some(chain)) => {
                assert!(taken);
                assert_eq!((chain.reader().remaining(), chain.writer().remaining()), (4, 8));
            }
            other => assert!(!taken && other.is_err()),
        }
    }
}

#[test]
fn thresholds_suppress_interrupts_until_they_are_crossed() {
    let mut ring = ring(feature::EVENT_IDX);
    ring.descriptor(0, 0x8000, 4, 0, 0);
    let complete = |ring: &mut Ring| {
        ring.offer(0);
        drop(ring.pop().unwrap());
        ring.queue.flush(&ring.memory).unwrap();
        ring.queue.take_interrupt(&ring.memory).unwrap()
    };
    assert!(complete(&mut ring), "the first is always told");
    ring.memory.store_u16(GuestAddress(AVAIL + 4 + 16), 3).unwrap();
    assert_eq!([(); 4].map(|()| complete(&mut ring)), [false, false, true, false]);
}

#[test]
fn flags_suppress_interrupts_without_thresholds() {
    let mut ring = ring(0);
    ring.descriptor(0, 0x8000, 4, 0, 0);
    for (flag, told) in [(AVAIL_NO_INTERRUPT, false), (0, true)] {
        ring.memory.store_u16(GuestAddress(AVAIL), flag).unwrap();
        ring.offer(0);
        drop(ring.pop().unwrap());
        ring.queue.flush(&ring.memory).unwrap();
        assert_eq!(ring.queue.take_interrupt(&ring.memory).unwrap(), told);
    }
}

#[test]
fn listening_tells_of_buffers_offered_meanwhile() {
    for features in [0, feature::EVENT_IDX] {
        let mut ring = ring(features);
        let mut seen = ring.queue.offered(&ring.memory).unwrap();
        assert!(!ring.queue.listen(&ring.memory, &mut seen).unwrap());
        ring.offer(0);
        assert!(ring.queue.listen(&ring.memory, &mut seen).unwrap());
        assert!(!ring.queue.listen(&ring.memory, &mut seen).unwrap());
    }
}

#[test]
fn indices_wrap() {
    let mut ring = ring(0);
    ring.descriptor(0, 0x8000, 4, 0, 0);
    for _ in 0..70_000 {
        ring.offer(0);
        ring.pop().unwrap().unwrap().complete(4);
        ring.queue.flush(&ring.memory).unwrap();
    }
    assert_eq!(ring.used(), (70_000u32 as u16, [0, 4]));
}

proptest::proptest! {
    #[test]
    fn no_ring_contents_panic_or_leave_ram(words: Vec<u64>, avail: [u16; 10], indirect: bool) {
        let features = if indirect { feature::INDIRECT_DESC } else { 0 };
        let mut ring = ring(features);
        for (i, word) in words.iter().take(512).enumerate() {
            ring.memory.write_obj(GuestAddress(DESC + 8 * i as u64), *word & 0x0007_0007_000f_ffff).unwrap();
        }
        ring.memory.write_obj(GuestAddress(AVAIL), avail).unwrap();
        for _ in 0..16 {
            match ring.pop() {
                Ok(Some(chain)) => {
                    let mut data = vec![0; 4096];
                    let _ = chain.reader().read(&mut data);
                    let _ = chain.writer().write(&data);
                }
                Ok(None) | Err(_) => break,
            }
        }
        ring.queue.flush(&ring.memory).unwrap();
    }
}
