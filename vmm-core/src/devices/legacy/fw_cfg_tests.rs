use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const BLOCK: u64 = 0x1000;
const BUFFER: u64 = 0x2000;

struct Fixture {
    memory: GuestMemory,
    device: FwCfg,
    made: Arc<AtomicUsize>,
    problems: Arc<Mutex<Vec<String>>>,
}

fn fixture() -> Fixture {
    let memory = GuestMemory::new(1 << 20).unwrap();
    let (made, problems) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let mut items = FwCfgItems::default();
    items.item(key::NB_CPUS, vec![2, 0]);
    items.file("etc/e820", vec![1, 2, 3, 4]).unwrap();
    items.writable_file("etc/vmgenid_addr", vec![0; 8]).unwrap();
    let count = made.clone();
    let make = move || {
        let nth = count.fetch_add(1, Ordering::SeqCst) as u8 + 1;
        Ok(vec![vec![nth; 3], vec![0x10 + nth; 2]])
    };
    items.lazy_files(&[("etc/table-loader", 6), ("etc/acpi/tables", 2)], make).unwrap();
    items.lazy_files(&[("broken", 2)], || Ok(vec![vec![9; 3]])).unwrap();
    let told = problems.clone();
    let sink: ProblemSink = Arc::new(move |_: &str, message| told.lock().unwrap().push(message));
    Fixture { device: FwCfg::new(memory.clone(), items, sink), memory, made, problems }
}

impl Fixture {
    fn select(&self, key: u16) {
        self.device.write(0, &key.to_le_bytes());
    }

    fn bytes(&self, count: usize) -> Vec<u8> {
        let byte = || {
            let mut byte = [0xff];
            self.device.read(1, &mut byte);
            byte[0]
        };
        (0..count).map(|_| byte()).collect()
    }

    /// Runs a DMA operation and returns what the device left in the control field.
    fn dma(&self, control: u32, len: u32, address: u64) -> u32 {
        let block = [&control.to_be_bytes()[..], &len.to_be_bytes(), &address.to_be_bytes()].concat();
        self.memory.write(GuestAddress(BLOCK), &block).unwrap();
        self.device.write(4, &[0; 4]);
        self.device.write(8, &(BLOCK as u32).to_be_bytes());
        u32::from_be(self.memory.read_obj(GuestAddress(BLOCK)).unwrap())
    }

    fn buffer(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(GuestAddress(BUFFER), &mut bytes).unwrap();
        bytes
    }

    /// The directory as name, key and size.
    fn directory(&self) -> Vec<(String, u16, u32)> {
        self.select(key::FILE_DIR);
        let count = u32::from_be_bytes(self.bytes(4).try_into().unwrap());
        let entry = |_| {
            let bytes = self.bytes(DIR_ENTRY);
            let name = String::from_utf8(bytes[8..].iter().copied().take_while(|&b| b != 0).collect()).unwrap();
            let size = u32::from_be_bytes(bytes[..4].try_into().unwrap());
            (name, u16::from_be_bytes(bytes[4..6].try_into().unwrap()), size)
        };
        (0..count).map(entry).collect()
    }

    fn key(&self, name: &str) -> u16 {
        self.directory().iter().find(|(n, ..)| n == name).unwrap().1
    }
}

#[test]
fn the_signature_the_features_and_the_ports_are_what_firmware_looks_for() {
    let guest = fixture();
    assert_eq!(guest.bytes(6), b"QEMU\0\0");
    guest.select(key::ID);
    assert_eq!(guest.bytes(4), [3, 0, 0, 0]);
    guest.select(key::NB_CPUS);
    assert_eq!(guest.bytes(3), [2, 0, 0]);
    guest.select(0x7777);
    assert_eq!(guest.bytes(2), [0, 0]);
    let (mut high, mut low) = ([0; 4], [0; 4]);
    guest.device.read(4, &mut high);
    guest.device.read(8, &mut low);
    assert_eq!((&high, &low), (b"QEMU", b" CFG"));
}

#[test]
fn the_directory_is_sorted_and_names_the_declared_sizes() {
    let names = ["broken", "etc/acpi/tables", "etc/e820", "etc/table-loader", "etc/vmgenid_addr"];
    let wanted: Vec<_> = names.into_iter().zip(0x20u16..).zip([2u32, 2, 4, 6, 8]).collect();
    let directory = fixture().directory();
    let found: Vec<_> = directory.iter().map(|(name, key, size)| ((name.as_str(), *key), *size)).collect();
    assert_eq!(found, wanted);
}

#[test]
fn dma_reads_skips_and_pads_with_zeroes() {
    let guest = fixture();
    let select = u32::from(guest.key("etc/e820")) << 16 | dma::SELECT;
    guest.memory.fill(GuestAddress(BUFFER), 16, 0xee).unwrap();
    assert_eq!(guest.dma(select | dma::SKIP, 1, 0), 0);
    assert_eq!(guest.dma(dma::READ, 6, BUFFER), 0);
    assert_eq!(guest.buffer(7), [2, 3, 4, 0, 0, 0, 0xee]);
    assert_eq!(guest.dma(select, 0, 0), 0);
    assert_eq!(guest.bytes(1), [1]);
}

#[test]
fn hostile_transfers_get_the_error_bit_and_change_nothing() {
    let guest = fixture();
    let writable = guest.key("etc/vmgenid_addr");
    guest.select(guest.key("etc/e820"));
    for (control, len, address) in [
        (dma::READ, 0x10_0000, BUFFER),
        (dma::READ, u32::MAX, BUFFER),
        (dma::READ, 4, u64::MAX),
        (dma::READ, 4, (1 << 20) - 2),
        (dma::WRITE, 4, BUFFER),
        (dma::WRITE | dma::SELECT | u32::from(writable) << 16, 9, BUFFER),
        (dma::WRITE | dma::SELECT | u32::from(writable) << 16, 8, u64::MAX - 4),
        (dma::WRITE | dma::SELECT | u32::from(key::NB_CPUS) << 16, 1, BUFFER),
    ] {
        assert_eq!(guest.dma(control, len, address), dma::ERROR, "{control:#x} {len:#x} {address:#x}");
    }
    assert_eq!(guest.device.contents("etc/vmgenid_addr").unwrap(), [0; 8]);
    // A block that is not in RAM.
    guest.device.write(4, &[0xff; 4]);
    guest.device.write(8, &[0xff; 4]);
    // Skipping for ever ends at the largest offset.
    guest.select(guest.key("etc/e820"));
    assert_eq!((guest.dma(dma::SKIP, u32::MAX, 0), guest.dma(dma::SKIP, u32::MAX, 0)), (0, 0));
    assert_eq!(guest.bytes(2), [0, 0]);
}

#[test]
fn a_writable_file_takes_what_the_guest_writes_until_reset() {
    let guest = fixture();
    let select = u32::from(guest.key("etc/vmgenid_addr")) << 16 | dma::SELECT;
    guest.memory.write(GuestAddress(BUFFER), &[7; 4]).unwrap();
    assert_eq!(guest.dma(select | dma::SKIP, 2, 0), 0);
    assert_eq!(guest.dma(dma::WRITE, 4, BUFFER), 0);
    assert_eq!(guest.device.contents("etc/vmgenid_addr").unwrap(), [0, 0, 7, 7, 7, 7, 0, 0]);
    guest.device.reset();
    assert_eq!(guest.device.contents("etc/vmgenid_addr").unwrap(), [0; 8]);
}

#[test]
fn an_answer_is_to_what_was_written_when_it_is_selected_and_outlasts_a_checkpoint() {
    let with_answer = || {
        let mut items = FwCfgItems::default();
        items.writable_file("a", vec![0; 2]).unwrap();
        items.answer("b", "a", |asked| asked.iter().sum::<u8>() + 1).unwrap();
        let guest = fixture();
        let device = FwCfg::new(guest.memory.clone(), items, Arc::new(|_: &str, why| panic!("{why}")));
        Fixture { device, ..guest }
    };
    let (first, second) = (with_answer(), with_answer());
    let (asked, answer) = (first.key("a"), first.key("b"));
    first.select(answer);
    assert_eq!(first.bytes(2), [1, 0]);
    first.memory.write(GuestAddress(BUFFER), &[20, 3]).unwrap();
    assert_eq!(first.dma(u32::from(asked) << 16 | dma::SELECT | dma::WRITE, 2, BUFFER), 0);
    first.select(answer);
    second.device.restore(&first.device.save().unwrap()).unwrap();
    assert_eq!((first.bytes(1), second.bytes(1)), (vec![24], vec![24]));
    second.device.reset();
    second.select(answer);
    assert_eq!(second.bytes(1), [1]);
}

#[test]
fn lazy_files_are_made_together_at_the_first_selection_after_a_reset() {
    let guest = fixture();
    let (loader, tables) = (guest.key("etc/table-loader"), guest.key("etc/acpi/tables"));
    assert_eq!(guest.made.load(Ordering::SeqCst), 0);
    guest.select(loader);
    assert_eq!(guest.bytes(7), [1, 1, 1, 0, 0, 0, 0]);
    guest.select(tables);
    assert_eq!((guest.bytes(2), guest.made.load(Ordering::SeqCst)), (vec![0x11, 0x11], 1));
    guest.device.reset();
    assert_eq!(guest.dma(u32::from(tables) << 16 | dma::SELECT | dma::READ, 2, BUFFER), 0);
    assert_eq!(guest.buffer(2), [0x12, 0x12]);
}

#[test]
fn a_lazy_file_that_outgrew_its_size_is_reported_once_and_reads_as_zeroes() {
    let guest = fixture();
    let broken = guest.key("broken");
    guest.select(broken);
    guest.select(broken);
    assert_eq!(guest.bytes(2), [0, 0]);
    let problems = guest.problems.lock().unwrap();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].contains("broken has 3 bytes where 2 were announced"), "{problems:?}");
}

#[test]
fn names_that_do_not_fit_and_duplicates_are_refused() {
    let mut items = FwCfgItems::default();
    for name in ["", "zero\0", "grün", &"x".repeat(56)] {
        assert_eq!(items.file(name, vec![]), Err(FwCfgError::Name(name.into())));
    }
    items.file(&"x".repeat(55), vec![]).unwrap();
    assert!(matches!(items.file(&"x".repeat(55), vec![]), Err(FwCfgError::Duplicate(_))));
    assert!(matches!(items.file("big", vec![0; (16 << 20) + 1]), Err(FwCfgError::TooLarge { .. })));
}

#[test]
fn a_restored_device_goes_on_in_the_middle_of_a_file() {
    let guest = fixture();
    let loader = guest.key("etc/table-loader");
    guest.memory.write(GuestAddress(BUFFER), &[5; 8]).unwrap();
    guest.dma(u32::from(guest.key("etc/vmgenid_addr")) << 16 | dma::SELECT | dma::WRITE, 8, BUFFER);
    guest.select(loader);
    guest.bytes(1);
    guest.device.write(4, &[1, 2, 3, 4]);
    let section = guest.device.save().unwrap();
    let fresh = fixture();
    fresh.device.restore(&section).unwrap();
    assert_eq!(fresh.device.save().unwrap(), section);
    assert_eq!(fresh.bytes(3), [1, 1, 0]);
    assert_eq!(fresh.made.load(Ordering::SeqCst), 0);
    assert_eq!(fresh.device.contents("etc/vmgenid_addr").unwrap(), [5; 8]);
}

#[test]
fn a_damaged_state_is_refused() {
    let state = |made, written| FwCfgState { selected: 0, offset: 0, dma_address: 0, made, written };
    for damaged in [
        state(vec![], vec![]),
        state(vec![Some(vec![vec![0; 7], vec![]]), None], vec![]),
        state(vec![Some(vec![vec![]]), None], vec![]),
        state(vec![None, None], vec![("etc/e820".into(), vec![0; 4])]),
        state(vec![None, None], vec![("etc/vmgenid_addr".into(), vec![0; 7])]),
        state(vec![None, None], vec![("nobody".into(), vec![])]),
    ] {
        let section = Section::encode("fw-cfg", &damaged).unwrap();
        assert!(fixture().device.restore(&section).is_err(), "{damaged:?}");
    }
}

#[test]
fn no_access_of_any_size_panics() {
    let guest = fixture();
    for offset in 0..12 {
        for len in [1, 2, 3, 4, 8, 16] {
            guest.device.write(offset, &vec![0xff; len]);
            guest.device.read(offset, &mut vec![0; len]);
        }
    }
}
