//! The controller through its PCI registers, by a driver that is honest or hostile, against a disk in memory.

use proptest::prelude::*;

use super::*;
use crate::backend::disk::{Control, DiskError, MemoryDisk};
use crate::base::GuestAddress;
use crate::pci::reg;
use crate::testkit::{NVME_RAM as RAM, NVME_SHADOW as SHADOW, NvmeGuest};

const SECTORS: usize = 2048;

/// Opcodes.
const FLUSH: u8 = 0;
const WRITE: u8 = 1;
const READ: u8 = 2;
const WRITE_ZEROES: u8 = 8;
const DATASET: u8 = 9;
const EVENT_REQUEST: u8 = 12;
/// Status codes with their type.
const INVALID_OPCODE: u16 = 0x01;
const INVALID_FIELD: u16 = 0x02;
const DATA_TRANSFER: u16 = 0x04;
const INVALID_NAMESPACE: u16 = 0x0b;
const PRP_OFFSET: u16 = 0x13;
const LBA_RANGE: u16 = 0x80;

fn content() -> Vec<u8> {
    (0..SECTORS * 512).map(|i| (i / 512 + i * 7) as u8).collect()
}

fn idle(queues: u16) -> (NvmeGuest, Control) {
    let (disk, control) = MemoryDisk::new(content(), false);
    (NvmeGuest::new(Box::new(disk), queues), control)
}

fn started() -> (NvmeGuest, Control) {
    let (mut guest, control) = idle(2);
    guest.start(16);
    (guest, control)
}

fn readonly() -> (NvmeGuest, Control) {
    let (disk, control) = MemoryDisk::new(content(), true);
    let mut guest = NvmeGuest::new(Box::new(disk), 1);
    guest.start(8);
    (guest, control)
}

fn io(opcode: u8, block: u64, count: u32, prps: [u64; 2]) -> [u32; 16] {
    let mut command =
        NvmeGuest::command(opcode, 1, prps[0], &[block as u32, (block >> 32) as u32, count.wrapping_sub(1)]);
    command[8] = prps[1] as u32;
    command[9] = (prps[1] >> 32) as u32;
    command
}

fn bytes(guest: &NvmeGuest, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    guest.memory.read(GuestAddress(at), &mut bytes).unwrap();
    bytes
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// A page of entries.
fn list(guest: &NvmeGuest, at: u64, entries: &[u64]) {
    for (i, entry) in (0u64..).zip(entries) {
        guest.memory.write_obj(GuestAddress(at + 8 * i), *entry).unwrap();
    }
}

/// PRPs for `len` bytes at page-aligned `at`, with a list where it takes one.
fn prps(guest: &mut NvmeGuest, at: u64, len: u64) -> [u64; 2] {
    let pages = len.div_ceil(4096);
    if pages <= 2 {
        return [at, if pages == 2 { at + 4096 } else { 0 }];
    }
    let entries: Vec<u64> = (1..pages).map(|page| at + 4096 * page).collect();
    let table = guest.alloc(8 * entries.len() as u64);
    list(guest, table, &entries);
    [at, table]
}

fn identify(guest: &mut NvmeGuest, kind: u32, namespace: u32) -> (u16, Vec<u8>) {
    let at = guest.alloc(4096);
    let status = guest.admin(6, namespace, at, &[kind]).status;
    (status, bytes(guest, at, 4096))
}

fn log_page(guest: &mut NvmeGuest, log: u32, len: u32, offset: u64) -> (u16, Vec<u8>) {
    let at = guest.alloc(u64::from(len));
    let dwords = [log | (len / 4 - 1) << 16, 0, offset as u32, (offset >> 32) as u32];
    let status = guest.admin(2, u32::MAX, at, &dwords).status;
    (status, bytes(guest, at, len as usize))
}

#[test]
fn the_function_is_an_nvme_controller_with_a_vector_for_each_queue() {
    let (guest, _) = idle(4);
    assert_eq!((guest.config(0), guest.config(8) >> 8, guest.config(0x2c)), (0x0010_1b36, 0x01_0802, 0x1100_1af4));
    assert_eq!(guest.config(0x40) & 0xff, 1, "power management");
    assert_eq!((guest.config(0x48) & 0xff, guest.config(0x48) >> 16 & 0x7ff), (0x11, 4));
    guest.write_config(reg::BAR0, &[0xff; 4]);
    assert_eq!(guest.config(reg::BAR0), !0x3fff);
}

#[test]
fn capabilities_and_version_are_those_of_the_specification() {
    let (guest, _) = idle(1);
    let mut cap = [0; 8];
    guest.read_bytes(0, &mut cap);
    let cap = u64::from_le_bytes(cap);
    assert_eq!((cap & 0xffff, cap >> 16 & 1, cap >> 17 & 3), (1023, 1, 0));
    assert_eq!((cap >> 32 & 0xf, cap >> 37 & 0xff, cap >> 48 & 0xf, cap >> 52 & 0xf), (0, 1, 0, 4));
    assert_eq!((guest.read(8), guest.read(0x14), guest.read(0x1c), guest.read(0x1000)), (0x10400, 0, 0, 0));
    // What is read-only stays; what is reserved reads as nothing.
    for offset in [0, 4, 8, 0x18, 0x1c, 0x20, 0x38, 0x40, 0xffc] {
        let before = guest.read(offset);
        guest.write(offset, u32::MAX);
        assert_eq!(guest.read(offset), before, "{offset:#x}");
    }
    guest.write(0x28, u32::MAX);
    assert_eq!(guest.read(0x28), !0xfff);
    guest.write(0x0c, 5);
    guest.write(0x10, 1);
    assert_eq!((guest.read(0x0c), guest.read(0x10)), (4, 4));
}

#[test]
fn the_controller_and_its_namespace_identify_themselves() {
    let (mut guest, _) = started();
    let (status, data) = identify(&mut guest, 1, 0);
    assert_eq!((status, &data[4..24], &data[24..42]), (0, &b"orangery-disk-0     "[..], &b"Orangery NVMe disk"[..]));
    assert_eq!((data[77], word(&data, 80), data[111], word(&data, 516)), (8, 0x10400, 1, 1));
    assert_eq!((data[257], data[512], data[513], data[520], data[525], data[536]), (1, 0x66, 0x44, 0x1c, 7, 1));
    assert!(data[768..].starts_with(b"nqn.2014-08.org.nvmexpress:uuid:"));
    let (status, data) = identify(&mut guest, 0, 1);
    assert_eq!((status, word(&data, 0), word(&data, 8), word(&data, 16)), (0, 2048, 2048, 2048));
    assert_eq!((data[24], data[64], data[68], data[99], &data[128..132]), (0x10, 7, 7, 0, &[0, 0, 9, 0][..]));
    let (status, data) = identify(&mut guest, 2, 0);
    assert_eq!((status, word(&data, 0), word(&data, 4)), (0, 1, 0));
    assert_eq!(word(&identify(&mut guest, 2, 1).1, 0), 0);
    let (status, data) = identify(&mut guest, 3, 1);
    assert_eq!((status, data[0], data[1], data[10] >> 4, data[12] >> 6), (0, 3, 16, 8, 2));
    for (kind, namespace, status) in
        [(0, 0, 0xb), (0, 2, 0xb), (0, u32::MAX, 0xb), (3, 0, 0xb), (2, u32::MAX, 0xb), (9, 1, 2)]
    {
        assert_eq!(identify(&mut guest, kind, namespace).0, status, "{kind} {namespace}");
    }
}

#[test]
fn what_is_written_is_read_back_at_every_length_and_offset_in_a_page() {
    let (mut guest, control) = started();
    for (block, count, skew) in
        [(0, 1, 0), (3, 8, 0), (7, 16, 512), (100, 9, 4), (33, 24, 3584), (500, 2048 - 500, 1024)]
    {
        let len = count as usize * 512;
        let base = guest.alloc(len as u64 + 8192);
        let data: Vec<u8> = (0..len).map(|i| (i * 31 + count as usize) as u8).collect();
        guest.memory.write(GuestAddress(base + skew), &data).unwrap();
        let first = 4096 - skew;
        let mut pointers = prps(&mut guest, base, (skew + len as u64).next_multiple_of(4096));
        pointers[0] += skew;
        if len as u64 <= first {
            pointers[1] = 0x123;
        }
        assert_eq!(guest.ask(1, io(WRITE, block, count, pointers)).status, 0, "{block} {count} {skew}");
        assert_eq!(control.bytes()[block as usize * 512..][..len], data);
        guest.memory.fill(GuestAddress(base), len + 8192, 0xee).unwrap();
        assert_eq!(guest.ask(2, io(READ, block, count, pointers)).status, 0);
        assert!(bytes(&guest, base + skew, len) == data, "{block} {count} {skew}");
        assert_eq!(bytes(&guest, base + skew + len as u64, 1), [0xee], "a read wrote beyond its end");
        guest.free_all();
    }
}

#[test]
fn a_list_may_start_anywhere_in_its_page_and_leads_on_at_its_end() {
    let (mut guest, _) = started();
    let len = 64 * 4096;
    let data = guest.alloc(len);
    let (first, second) = (guest.alloc(4096), guest.alloc(4096));
    let pages: Vec<u64> = (1..64).rev().map(|page| data + 4096 * page).collect();
    // Two entries fit into the first page, and the third place leads on.
    let start = first + 4096 - 24;
    list(&guest, start, &[pages[0], pages[1], second]);
    list(&guest, second, &pages[2..]);
    assert_eq!(guest.ask(1, io(READ, 0, 512, [data, start])).status, 0);
    let disk = content();
    for (i, &page) in std::iter::once(&data).chain(&pages).enumerate() {
        assert!(bytes(&guest, page, 4096) == disk[i * 4096..(i + 1) * 4096], "page {i}");
    }
    // The last place of a page holds data where the list ends there.
    let start = first + 4096 - 16;
    list(&guest, start, &[data + 4096, data + 8192]);
    assert_eq!(guest.ask(1, io(READ, 0, 24, [data, start])).status, 0);
    // It leads to itself: an endless list is as long as the transfer.
    list(&guest, first, &[data; 512]);
    list(&guest, first + 4088, &[first]);
    assert_eq!(guest.ask(1, io(READ, 0, 2048, [data, first + 4088])).status, 0);
}

#[test]
fn regions_that_break_the_rules_are_refused_and_nothing_moves() {
    let (mut guest, control) = started();
    let before = control.bytes();
    let (data, table) = (guest.alloc(8192), guest.alloc(4096));
    list(&guest, table, &[data, data + 8, 0, 0xffff_f000]);
    list(&guest, table + 4088, &[table + 16]);
    let outside = [RAM, u64::MAX - 4095, 0xfee0_0000, RAM - 512];
    let mut cases = vec![
        ([data + 2, 0], 1, PRP_OFFSET),
        ([data, data + 512], 16, PRP_OFFSET),
        ([data, table + 4], 32, PRP_OFFSET),
        ([data, table], 32, PRP_OFFSET),
        ([data, table + 4088], 32, PRP_OFFSET),
        ([data, RAM], 32, DATA_TRANSFER),
        ([data, table + 16], 32, DATA_TRANSFER),
        ([data, 0], 2049, LBA_RANGE),
    ];
    cases.extend(outside.map(|at| ([at, 0], if at % 4096 == 0 { 1 } else { 8 }, DATA_TRANSFER)));
    cases[11] = ([RAM - 512, RAM], 2, DATA_TRANSFER);
    for (pointers, count, status) in cases {
        for opcode in [READ, WRITE] {
            assert_eq!(guest.ask(1, io(opcode, 0, count, pointers)).status, status, "{pointers:x?} {count}");
        }
    }
    assert_eq!(control.bytes(), before);
    assert!(guest.problems().is_empty(), "a guest's mistake is not the person's problem");
}

#[test]
fn larger_pages_are_walked_as_such() {
    let (mut guest, control) = idle(1);
    guest.use_msix();
    // MPS 4: 64 KiB.
    guest.enable_with(0x0046_0001 | 4 << 7);
    guest.create(1, 16);
    let at = guest.alloc(0x5_0000).next_multiple_of(0x1_0000);
    assert_eq!(guest.ask(1, io(READ, 1, 128 + 100, [at + 512, at + 0x2_0000])).status, 0);
    let disk = control.bytes();
    assert!(bytes(&guest, at + 512, 127 * 512) == disk[512..128 * 512]);
    assert!(bytes(&guest, at + 0x2_0000, 101 * 512) == disk[128 * 512..229 * 512]);
    assert_eq!(guest.ask(1, io(READ, 1, 228, [at + 512, at + 0x2_1000])).status, PRP_OFFSET);
}

fn descriptor(address: u64, len: u32, kind: u8) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[15] = kind;
    bytes
}

fn with_sgl(opcode: u8, block: u64, count: u32, first: [u8; 16]) -> [u32; 16] {
    let mut command = io(opcode, block, count, [0, 0]);
    command[0] |= 1 << 14;
    for (word, chunk) in command[6..10].iter_mut().zip(first.as_chunks().0) {
        *word = u32::from_le_bytes(*chunk);
    }
    command
}

#[test]
fn scatter_gather_lists_reach_single_bytes_through_segments() {
    let (mut guest, control) = started();
    let (data, table) = (guest.alloc(0x4000), guest.alloc(8192));
    assert_eq!(guest.ask(1, with_sgl(READ, 4, 2, descriptor(data, 1024, 0))).status, 0);
    assert!(bytes(&guest, data, 1024) == control.bytes()[2048..3072]);
    // Odd pieces, nothing, and a segment that leads to the last.
    let first = [descriptor(data + 1, 3, 0), descriptor(data + 0x1005, 1000, 0), descriptor(table + 4096, 32, 0x30)];
    let last = [descriptor(0, 0, 0), descriptor(data + 0x2003, 21, 0)];
    guest.memory.write(GuestAddress(table), &first.concat()).unwrap();
    guest.memory.write(GuestAddress(table + 4096), &last.concat()).unwrap();
    guest.memory.fill(GuestAddress(data), 0x4000, 0xcc).unwrap();
    assert_eq!(guest.ask(1, with_sgl(READ, 9, 2, descriptor(table, 48, 0x20))).status, 0);
    let seen = [bytes(&guest, data + 1, 3), bytes(&guest, data + 0x1005, 1000), bytes(&guest, data + 0x2003, 21)];
    assert!(seen.concat() == control.bytes()[9 * 512..11 * 512]);
    assert_eq!((bytes(&guest, data, 1), bytes(&guest, data + 0x2003 + 21, 1)), (vec![0xcc], vec![0xcc]));
    assert_eq!(guest.ask(1, with_sgl(WRITE, 20, 2, descriptor(table, 48, 0x20))).status, 0);
    assert_eq!(control.bytes()[20 * 512..22 * 512], control.bytes()[9 * 512..11 * 512]);
}

#[test]
fn scatter_gather_lists_that_break_the_rules_are_refused() {
    let (mut guest, control) = started();
    let before = control.bytes();
    let (data, table) = (guest.alloc(4096), guest.alloc(8192));
    let put = |guest: &NvmeGuest, descriptors: &[[u8; 16]]| {
        guest.memory.write(GuestAddress(table), &descriptors.concat()).unwrap();
    };
    let block = descriptor(data, 512, 0);
    let segment = |len| descriptor(table, len, 0x20);
    let last = |len| descriptor(table, len, 0x30);
    // A list in memory, the command's own descriptor, and the status.
    type Case<'a> = (&'a [[u8; 16]], [u8; 16], u16);
    let cases: &[Case<'_>] = &[
        (&[], descriptor(data, 511, 0), 0x0f),
        (&[], descriptor(data, 513, 0), 0x0f),
        (&[], descriptor(data, 512, 0x01), 0x11),
        (&[], descriptor(data, 512, 0x10), 0x11),
        (&[], descriptor(data, 512, 0x40), 0x11),
        (&[], descriptor(data, 512, 0xff), 0x11),
        (&[], descriptor(RAM - 511, 512, 0), DATA_TRANSFER),
        (&[], descriptor(u64::MAX, 512, 0), DATA_TRANSFER),
        (&[], descriptor(RAM, 16, 0x30), DATA_TRANSFER),
        (&[], last(0), 0x0d),
        (&[], last(24), 0x0d),
        (&[], last(!15), 0x0e),
        // A segment has to lead on, the last must not, and a pointer stands at the end.
        (&[block], segment(16), 0x0d),
        (&[block, segment(16)], last(32), 0x0d),
        (&[last(16), block], segment(32), 0x0d),
        // It leads to itself.
        (&[segment(16)], segment(16), 0x0e),
        (&[block, segment(32)], segment(32), 0x0f),
    ];
    for (i, (descriptors, first, status)) in cases.iter().enumerate() {
        put(&guest, descriptors);
        assert_eq!(guest.ask(1, with_sgl(WRITE, 0, 1, *first)).status, *status, "case {i}");
    }
    // Metadata by a list, and admin commands by any.
    let mut command = with_sgl(READ, 0, 1, block);
    command[0] |= 2 << 14;
    assert_eq!(guest.ask(1, command).status, INVALID_FIELD);
    let mut command = NvmeGuest::command(6, 0, data, &[1]);
    command[0] |= 1 << 14;
    assert_eq!(guest.ask(0, command).status, INVALID_FIELD);
    assert_eq!(control.bytes(), before);
}

#[test]
fn commands_that_are_not_offered_or_miss_the_namespace_fail() {
    let (mut guest, control) = started();
    let before = control.bytes();
    let at = guest.alloc(4096);
    for opcode in [3, 4, 5, 0x0c, 0x0d, 0x80, 0xff] {
        assert_eq!(guest.ask(1, io(opcode, 0, 1, [at, 0])).status, INVALID_OPCODE, "{opcode}");
    }
    for opcode in [3, 7, 0x0d, 0x10, 0x18, 0x80, 0xff] {
        assert_eq!(guest.admin(opcode, 0, at, &[]).status, INVALID_OPCODE, "{opcode}");
    }
    for namespace in [0, 2, u32::MAX] {
        let mut command = io(WRITE, 0, 1, [at, 0]);
        command[1] = namespace;
        assert_eq!(guest.ask(1, command).status, INVALID_NAMESPACE);
    }
    let mut fused = io(WRITE, 0, 1, [at, 0]);
    fused[0] |= 1 << 8;
    assert_eq!(guest.ask(1, fused).status, INVALID_FIELD);
    for (block, count) in [(2048, 1), (2047, 2), (u64::MAX, 1), (1 << 55, 1), (0, 65536)] {
        for opcode in [READ, WRITE, WRITE_ZEROES] {
            assert_eq!(guest.ask(1, io(opcode, block, count, [at, 0])).status, LBA_RANGE, "{block} {count}");
        }
    }
    let mut directive = io(WRITE, 0, 1, [at, 0]);
    directive[12] |= 1 << 20;
    assert_eq!(guest.ask(1, directive).status, INVALID_FIELD);
    assert_eq!(control.bytes(), before);
}

#[test]
fn a_transfer_above_the_limit_is_refused() {
    let (disk, _) = MemoryDisk::new(vec![0; 4 << 20], false);
    let mut guest = NvmeGuest::new(Box::new(disk), 1);
    guest.start(8);
    let at = guest.alloc(2 << 20);
    let pointers = prps(&mut guest, at, 2 << 20);
    assert_eq!(guest.ask(1, io(READ, 0, 2048, pointers)).status, 0);
    assert_eq!(guest.ask(1, io(READ, 0, 2049, pointers)).status, INVALID_FIELD);
}

#[test]
fn ranges_are_zeroed_and_discarded_and_nothing_beside_them() {
    let (mut guest, control) = started();
    let mut model = control.bytes();
    assert_eq!(guest.ask(1, io(WRITE_ZEROES, 5, 3, [0, 0])).status, 0);
    let mut unmap = io(WRITE_ZEROES, 20, 1000, [0, 0]);
    unmap[12] |= 1 << 25 | 1 << 30;
    assert_eq!(guest.ask(1, unmap).status, 0);
    model[5 * 512..8 * 512].fill(0);
    model[20 * 512..1020 * 512].fill(0);
    assert!(control.bytes() == model);
    assert_eq!(control.flushes(), (0, 1), "FUA");
    let at = guest.alloc(4096);
    let range = |block: u64, count: u32| [&[0; 4][..], &count.to_le_bytes(), &block.to_le_bytes()].concat();
    let put = |guest: &NvmeGuest, ranges: &[Vec<u8>]| guest.memory.write(GuestAddress(at), &ranges.concat()).unwrap();
    put(&guest, &[range(1200, 8), range(7, 0), range(2040, 8)]);
    // Advice that is not to deallocate changes nothing.
    assert_eq!(guest.admin(0x0a, 0, 0, &[6]).answer, 1);
    assert_eq!(guest.ask(1, NvmeGuest::command(DATASET, 1, at, &[2, 1])).status, 0);
    assert!(control.bytes() == model);
    assert_eq!(guest.ask(1, NvmeGuest::command(DATASET, 1, at, &[2, 4])).status, 0);
    model[1200 * 512..1208 * 512].fill(0xdd);
    model[2040 * 512..].fill(0xdd);
    assert!(control.bytes() == model);
    // A good range before a bad one is left alone, too.
    for bad in [range(2048, 1), range(u64::MAX, 1), range(0, u32::MAX)] {
        put(&guest, &[range(0, 1), bad]);
        assert_eq!(guest.ask(1, NvmeGuest::command(DATASET, 1, at, &[1, 4])).status, LBA_RANGE);
    }
    assert_eq!(guest.ask(1, NvmeGuest::command(DATASET, 1, RAM, &[1, 4])).status, DATA_TRANSFER);
    assert!(control.bytes() == model);
}

#[test]
fn flushes_and_forced_writes_reach_stable_storage() {
    let (mut guest, control) = started();
    let at = guest.alloc(4096);
    assert_eq!(guest.ask(1, io(WRITE, 0, 1, [at, 0])).status, 0);
    assert_eq!(control.flushes(), (0, 0));
    assert_eq!(guest.ask(1, NvmeGuest::command(FLUSH, 1, 0, &[])).status, 0);
    assert_eq!(guest.ask(1, NvmeGuest::command(FLUSH, u32::MAX, 0, &[])).status, 0);
    let mut forced = io(WRITE, 0, 1, [at, 0]);
    forced[12] |= 1 << 30;
    assert_eq!(guest.ask(1, forced).status, 0);
    assert_eq!(control.flushes(), (2, 1));
    // Without a write cache every write is forced, after what was in it.
    assert_eq!(guest.admin(9, 0, 0, &[6, 0]).status, 0);
    assert_eq!(control.flushes(), (3, 1));
    assert_eq!(guest.ask(1, io(WRITE, 0, 1, [at, 0])).status, 0);
    assert_eq!(control.flushes(), (3, 2));
    assert_eq!((guest.admin(0x0a, 0, 0, &[6]).answer, guest.admin(0x0a, 0, 0, &[6 | 1 << 8]).answer), (0, 1));
    assert_eq!(guest.admin(9, 0, 0, &[6, 1]).status, 0);
}

#[test]
fn a_read_only_disk_is_never_written() {
    let (mut guest, control) = readonly();
    let at = guest.alloc(4096);
    assert_eq!(identify(&mut guest, 0, 1).1[99], 1);
    assert_eq!(identify(&mut guest, 1, 0).1[520] & 8, 0);
    assert_eq!(guest.ask(1, io(WRITE, 0, 1, [at, 0])).status, 0x20);
    assert_eq!(guest.ask(1, io(WRITE_ZEROES, 0, 1, [at, 0])).status, INVALID_OPCODE);
    assert_eq!(guest.ask(1, NvmeGuest::command(DATASET, 1, at, &[0, 4])).status, 0x20);
    assert_eq!(guest.ask(1, io(READ, 0, 1, [at, 0])).status, 0);
    assert!(control.bytes() == content());
    guest.write(0x14, 0x0046_4001);
    guest.run();
    assert_eq!((guest.read(0x1c), control.flushes()), (9, (0, 0)));
}

#[test]
fn queues_are_created_and_deleted_by_the_rules() {
    let (mut guest, _) = idle(2);
    guest.use_msix();
    guest.enable();
    let at = guest.alloc(0x1_0000);
    let completion = |number: u32, entries: u32| (entries - 1) << 16 | number;
    // Opcode, address, dwords 10 and 11, status.
    let cases: &[(u8, u64, u32, u32, u16)] = &[
        (5, at, completion(0, 8), 3, 0x101),
        (5, at, completion(3, 8), 3, 0x101),
        (5, at, completion(0xffff, 8), 3, 0x101),
        (5, at, completion(1, 1), 3, 0x102),
        (5, at, completion(1, 1025), 3, 0x102),
        (5, at, completion(1, 8), 2, INVALID_FIELD),
        (5, at + 512, completion(1, 8), 3, PRP_OFFSET),
        (5, at, completion(1, 8), 3 << 16 | 3, 0x108),
        (5, RAM, completion(1, 8), 3, INVALID_FIELD),
        (5, RAM - 4096, completion(1, 512), 3, INVALID_FIELD),
        (5, u64::MAX - 4095, completion(1, 8), 3, INVALID_FIELD),
        (1, at, completion(1, 8), 1 << 16 | 1, 0x100),
        (1, at, completion(1, 8), 1, 0x101),
        (1, at, completion(1, 8), 9 << 16 | 1, 0x101),
        (5, at, completion(1, 8), 1 << 16 | 3, 0),
        (5, at, completion(1, 8), 1 << 16 | 3, 0x101),
        (1, at, completion(0, 8), 1 << 16 | 1, 0x101),
        (1, at, completion(3, 8), 1 << 16 | 1, 0x101),
        (1, at + 4096, completion(1, 8), 1 << 16, INVALID_FIELD),
        (1, at + 4096, completion(1, 1), 1 << 16 | 1, 0x102),
        (1, at + 8, completion(1, 8), 1 << 16 | 1, PRP_OFFSET),
        (1, RAM, completion(1, 8), 1 << 16 | 1, INVALID_FIELD),
        (1, at + 4096, completion(1, 8), 1 << 16 | 1, 0),
        (1, at + 4096, completion(2, 8), 1 << 16 | 1, 0),
        (4, 0, 0, 0, 0x101),
        (4, 0, 2, 0, 0x101),
        (4, 0, 1, 0, 0x10c),
        (0, 0, 0, 0, 0x101),
        (0, 0, 7, 0, 0x101),
        (0, 0, 1, 0, 0),
        (0, 0, 1, 0, 0x101),
        (4, 0, 1, 0, 0x10c),
        (0, 0, 2, 0, 0),
        (4, 0, 1, 0, 0),
        (4, 0, 1, 0, 0x101),
    ];
    for &(opcode, address, ten, eleven, status) in cases {
        let seen = guest.admin(opcode, 0, address, &[ten, eleven]).status;
        assert_eq!(seen, status, "{opcode} {address:#x} {ten:#x} {eleven:#x}");
    }
    // Entry sizes that were not set.
    guest.write(0x14, 1);
    assert_eq!(guest.admin(5, 0, at, &[completion(1, 8), 3]).status, 0x102);
    // Without messages there is one vector.
    let (mut guest, _) = idle(2);
    guest.enable();
    assert_eq!(guest.admin(5, 0, 0x1_0000, &[completion(1, 8), 1 << 16 | 3]).status, 0x108);
    guest.create(1, 8);
}

#[test]
fn a_controller_that_is_set_up_wrongly_fails_until_it_is_reset() {
    let (mut guest, _) = idle(1);
    let good = [0x1f_001f, 0x10_0000, 0x12_0000, 0x0046_0001];
    let wrong = [
        [0x1f, 0x10_0000, 0x12_0000, 0x0046_0001],
        [0x1f_0000, 0x10_0000, 0x12_0000, 0x0046_0001],
        [0x1f_001f, RAM as u32, 0x12_0000, 0x0046_0001],
        [0x1f_001f, 0x10_0000, 0xfee0_0000, 0x0046_0001],
        [0xfff_0fff, 0x10_0000, RAM as u32 - 0xf000, 0x0046_0001],
        [0x1f_001f, 0x10_0000, 0x12_0000, 0x0046_0011],
        [0x1f_001f, 0x10_0000, 0x12_0000, 0x0046_0281],
        [0x1f_001f, 0x10_0000, 0x12_0000, 0x0046_0801],
    ];
    for [sizes, submission, completion, configuration] in wrong {
        for (offset, value) in [(0x24, sizes), (0x28, submission), (0x30, completion), (0x14, configuration)] {
            guest.write(offset, value);
        }
        guest.run();
        assert_eq!(guest.read(0x1c), 2, "{sizes:#x} {submission:#x} {completion:#x} {configuration:#x}");
        guest.write(0x1000, 1);
        guest.run();
        guest.disable();
        assert_eq!(guest.read(0x1c), 0);
    }
    for (offset, value) in [0x24, 0x28, 0x30, 0x14].into_iter().zip(good) {
        guest.write(offset, value);
    }
    guest.run();
    assert_eq!(guest.read(0x1c), 1);
}

#[test]
fn features_are_read_back_as_set_and_reset_with_the_controller() {
    let (mut guest, _) = started();
    let cases: &[(u32, u32, u32)] = &[
        (1, 0x0102_0307, 0x0102_0307),
        (2, 0, 0),
        (4, 0x160, 0x160),
        (5, 77, 77),
        (8, 0x0a05, 0x0a05),
        (0xa, 1, 1),
        (0xb, 0x31f, 0x31f),
    ];
    for &(feature, value, back) in cases {
        assert_eq!(guest.admin(9, 1, 0, &[feature, value]).status, 0, "{feature}");
        assert_eq!(guest.admin(10, 1, 0, &[feature]).answer, back, "{feature}");
        assert_eq!(guest.admin(9, 1, 0, &[feature | 1 << 31, value]).status, 0x10d);
        assert_eq!(guest.admin(10, 1, 0, &[feature | 3 << 8]).answer & 5, 4);
    }
    assert_eq!(guest.admin(9, 0, 0, &[9, 2 | 1 << 16]).status, 0);
    assert_eq!(guest.admin(10, 0, 0, &[9, 2]).answer, 2 | 1 << 16);
    assert_eq!(guest.admin(10, 0, 0, &[9, 1]).answer, 1);
    for (feature, value) in [(9, 3), (2, 1), (3, 0), (0xc, 1), (0x80, 0), (5, 1 << 16), (4, 1 << 16), (0, 0)] {
        assert_eq!(guest.admin(9, 1, 0, &[feature, value]).status, INVALID_FIELD, "{feature}");
    }
    assert_eq!(guest.admin(9, 7, 0, &[5, 0]).status, INVALID_NAMESPACE);
    assert_eq!(guest.admin(10, 0, 0, &[3]).status, INVALID_FIELD);
    assert_eq!(guest.admin(10, 0, 0, &[1 | 5 << 8]).status, INVALID_FIELD);
    // The number of queues is asked for before there are any.
    assert_eq!(guest.admin(9, 0, 0, &[7, 0x1_0001]).status, 0x0c);
    assert_eq!(guest.admin(10, 0, 0, &[7]).answer, 0x1_0001);
    guest.disable();
    guest.enable();
    assert_eq!(guest.admin(10, 0, 0, &[4]).answer, 343);
    assert_eq!(guest.admin(9, 0, 0, &[7, 0x7_0007]).answer, 0x1_0001);
    assert_eq!(guest.admin(9, 0, 0, &[7, 0xffff]).status, INVALID_FIELD);
}

#[test]
fn logs_tell_what_happened_and_are_read_in_parts() {
    let (mut guest, control) = started();
    let at = guest.alloc(0x10_0000);
    let pointers = prps(&mut guest, at, 0x10_0000);
    guest.ask(1, io(READ, 0, 2001, pointers));
    guest.ask(1, io(WRITE, 0, 8, [at, 0]));
    let (status, smart) = log_page(&mut guest, 2, 512, 0);
    assert_eq!((status, smart[0], word(&smart, 1) as u16, smart[3]), (0, 0, 300, 100));
    assert_eq!([32, 48, 64, 80, 112, 160].map(|at| word(&smart, at)), [3, 1, 1, 1, 1, 0]);
    assert_eq!(log_page(&mut guest, 2, 8, 64).1, smart[64..72]);
    let (status, firmware) = log_page(&mut guest, 3, 1024, 0);
    assert_eq!((status, firmware[0], &firmware[8..16], firmware[600]), (0, 1, &b"1.0     "[..], 0));
    assert_eq!(log_page(&mut guest, 4, 4096, 0), (0, vec![0; 4096]));
    let (_, effects) = log_page(&mut guest, 5, 4096, 0);
    assert_eq!([4 * 6, 1024 + 4, 1024 + 8, 4 * 7].map(|at| word(&effects, at)), [1, 3, 1, 0]);
    for (log, len, offset, status) in [
        (0, 16, 0, 0x109),
        (0x70, 16, 0, 0x109),
        (2, 16, 2, 2),
        (2, 16, 512, 2),
        (2, 16, u64::MAX - 3, 2),
        (2, 1 << 20, 4, 0),
    ] {
        let dwords = [log | ((len / 4 - 1) & 0xffff) << 16, (len / 4 - 1) >> 16, offset as u32, (offset >> 32) as u32];
        let mut command = NvmeGuest::command(2, u32::MAX, pointers[0], &dwords);
        command[8] = pointers[1] as u32;
        assert_eq!(guest.ask(0, command).status, status, "{log} {len} {offset}");
    }
    assert_eq!(guest.admin(2, 9, at, &[2 | 3 << 16]).status, INVALID_NAMESPACE);
    assert_eq!(guest.admin(2, 0, at, &[2 | 3 << 16, 0xffff]).status, INVALID_FIELD, "256 MiB of a log");
    // The host's failure is in the error log.
    control.fail(Some(|| DiskError::Shrunk));
    assert_eq!(guest.ask(1, io(READ, 9, 1, [at, 0])).status, 0x281);
    assert_eq!(guest.ask(1, io(WRITE, 9, 1, [at, 0])).status, 0x280);
    let (_, errors) = log_page(&mut guest, 1, 256, 0);
    assert_eq!((word(&errors, 0), errors[8], word(&errors, 16), word(&errors, 64)), (2, 1, 9, 1));
    assert_eq!(word(&log_page(&mut guest, 2, 512, 0).1, 160), 2);
}

#[test]
fn a_controller_that_was_shut_down_while_disabled_can_be_enabled() {
    let (mut guest, _) = started();
    guest.disable();
    guest.write(0x14, 0x4000);
    guest.run();
    assert_eq!(guest.read(0x1c), 8, "shut down");
    guest.write(0x14, 0);
    guest.run();
    guest.start(8);
    let at = guest.alloc(4096);
    assert_eq!(guest.ask(1, io(READ, 0, 1, [at, 0])).status, 0);
}

#[test]
fn a_failing_host_fails_commands_and_is_complained_of_once() {
    let (mut guest, control) = started();
    let at = guest.alloc(4096);
    control.fail(Some(|| DiskError::Shrunk));
    for _ in 0..3 {
        assert_eq!(guest.ask(1, io(READ, 0, 1, [at, 0])).status, 0x281);
    }
    let problems = guest.problems();
    assert!(problems.len() == 1 && problems[0].contains("cut short"), "{problems:?}");
    assert!(guest.stalls().is_empty());
    control.fail(None);
    assert_eq!(guest.ask(1, io(WRITE, 0, 1, [at, 0])).status, 0);
}

#[test]
fn a_full_host_pauses_the_machine_and_no_write_fails_or_is_lost() {
    for moved in [false, true] {
        let (mut guest, mut control) = started();
        let at = guest.alloc(4096);
        guest.memory.fill(GuestAddress(at), 4096, 0x77).unwrap();
        control.fail(Some(|| DiskError::Full));
        for block in 0..5 {
            guest.put(1, io(WRITE, block, 1, [at, 0])).unwrap();
        }
        guest.ring(1);
        assert_eq!(guest.take(1), None, "nothing completes");
        let stalls = guest.stalls();
        assert!(stalls.len() == 1 && stalls[0].contains("no space left"), "{stalls:?}");
        guest.put(2, io(WRITE, 5, 1, [at, 0])).unwrap();
        guest.ring(2);
        assert!(guest.stalls().is_empty() && guest.problems().is_empty(), "it was said");
        // Still full: the machine is paused once more.
        guest.nvme.pause();
        guest.nvme.resume();
        guest.run();
        assert_eq!((guest.take(1), guest.stalls().len()), (None, 1));
        // A queue that is deleted and a shutdown wait for what is to be done again.
        let delete = guest.put(0, NvmeGuest::command(0, 0, 0, &[1])).unwrap();
        guest.ring(0);
        guest.write(0x14, 0x0046_4001);
        guest.run();
        assert_eq!(guest.read(0x1c), 5);
        guest.nvme.pause();
        control.fail(None);
        if moved {
            let (other, others) = MemoryDisk::new(content(), false);
            guest.move_to(Box::new(other)).unwrap();
            control = others;
        } else {
            guest.nvme.resume();
            guest.run();
        }
        for _ in 0..5 {
            assert_eq!(guest.take(1).map(|completed| completed.status), Some(0));
        }
        assert!(control.bytes()[..5 * 512] == [0x77; 5 * 512]);
        assert_eq!((guest.read(0x1c), guest.take(0)), (9, None), "{delete}");
    }
}

#[test]
fn each_queue_interrupts_by_its_own_vector() {
    let (mut guest, _) = started();
    guest.msi.take();
    let at = guest.alloc(4096);
    for queue in [2, 1] {
        guest.put(queue, io(READ, 0, 1, [at, 0])).unwrap();
        guest.ring(queue);
        let sent: Vec<u32> = guest.msi.take().iter().map(|message| message.data).collect();
        assert_eq!(sent, [u32::from(queue)]);
        guest.take(queue).unwrap();
    }
    assert!(!guest.line.level());
    guest.admin(10, 0, 0, &[1]);
    assert_eq!(guest.msi.take()[0].data, 0);
}

#[test]
fn the_pin_is_asserted_until_all_completions_are_taken_and_can_be_masked() {
    let (mut guest, _) = idle(1);
    guest.enable();
    guest.create(1, 8);
    assert!(!guest.line.level());
    let at = guest.alloc(4096);
    for _ in 0..2 {
        guest.put(1, io(READ, 0, 1, [at, 0])).unwrap();
    }
    guest.ring(1);
    assert!(guest.line.level() && guest.config(4) >> 19 & 1 == 1);
    guest.write(0x0c, 1);
    assert!(!guest.line.level());
    guest.write(0x10, 1);
    assert!(guest.line.level());
    guest.write_config(reg::COMMAND, &[6, 4]);
    assert!(!guest.line.level());
    guest.write_config(reg::COMMAND, &[6, 0]);
    guest.take(1).unwrap();
    assert!(guest.line.level());
    guest.take(1).unwrap();
    assert!(!guest.line.level() && guest.config(4) >> 19 & 1 == 0);
    guest.put(1, io(READ, 0, 1, [at, 0])).unwrap();
    guest.ring(1);
    guest.delete(1);
    assert!(!guest.line.level(), "a queue that is gone asserts the pin");
}

#[test]
fn a_full_completion_queue_holds_commands_back_until_there_is_room() {
    for shadow in [false, true] {
        let (mut guest, _) = idle(1);
        guest.start(64);
        guest.delete(1);
        // More commands than completions.
        let (submission, completion) = NvmeGuest::queue_at(1);
        guest.create(1, 64);
        guest.delete(1);
        assert_eq!(guest.admin(5, 0, completion, &[3 << 16 | 1, 1 << 16 | 3]).status, 0);
        assert_eq!(guest.admin(1, 0, submission, &[63 << 16 | 1, 1 << 16 | 1]).status, 0);
        guest.set_entries(1, 64, 4);
        assert!(!shadow || guest.set_shadow() == 0);
        let at = guest.alloc(4096);
        for _ in 0..40 {
            guest.put(1, io(READ, 0, 1, [at, 0])).unwrap();
        }
        guest.ring(1);
        let mut seen = 0;
        for _ in 0..3 {
            assert_eq!(guest.peek(1).map(|completed| completed.status), Some(0));
            seen += 1;
        }
        assert_eq!(guest.peek(1), None, "a fourth entry in a queue of four");
        guest.acknowledge(1);
        while guest.take(1).is_some() {
            seen += 1;
        }
        assert_eq!((seen, guest.outstanding()), (40, 0), "shadow: {shadow}");
    }
}

#[test]
fn events_wait_for_requests_and_for_their_log_to_be_read() {
    let (mut guest, _) = started();
    let requests: Vec<u16> =
        (0..4).map(|_| guest.put(0, NvmeGuest::command(EVENT_REQUEST, 0, 0, &[])).unwrap()).collect();
    guest.ring(0);
    assert_eq!(guest.peek(0), None);
    assert_eq!(guest.admin(EVENT_REQUEST, 0, 0, &[]).status, 0x105);
    // A doorbell of no queue, twice, and a value that the queue does not have.
    guest.write(0x1000 + 8 * 7, 1);
    guest.write(0x1000 + 8 * 40, 1);
    guest.run();
    let first = guest.take(0).unwrap();
    assert_eq!((first.id, first.status, first.answer), (requests[0], 0, 0x01_0000));
    guest.write(0x1000 + 8, 16);
    guest.run();
    assert_eq!(guest.take(0), None, "the log was not read yet");
    assert_eq!(word(&log_page(&mut guest, 1 | 1 << 15, 64, 0).1, 8), 0xffff_ffff);
    assert_eq!(guest.take(0), None, "the log was read with the event retained");
    log_page_and_event(&mut guest, requests[1], 0x01_0100);
    // The temperature, when asked for.
    assert_eq!(guest.admin(9, 0, 0, &[0xb, 2]).status, 0);
    let command = guest.put(0, NvmeGuest::command(9, 0, 0, &[4, 100])).unwrap();
    guest.ring(0);
    let done: Vec<_> = std::iter::from_fn(|| guest.take(0)).map(|c| (c.id, c.answer)).collect();
    assert_eq!(done, [(command, 0), (requests[2], 0x02_0101)]);
    assert_eq!(log_page(&mut guest, 2, 512, 0).1[0], 2);
    // The last request is aborted; other commands are not there to be aborted.
    assert_eq!(guest.admin(8, 0, 0, &[1 | 9 << 16]).answer, 1);
    let abort = guest.put(0, NvmeGuest::command(8, 0, 0, &[u32::from(requests[3]) << 16])).unwrap();
    guest.ring(0);
    let done: Vec<_> = std::iter::from_fn(|| guest.take(0)).map(|c| (c.id, c.status, c.answer)).collect();
    assert_eq!(done, [(requests[3], 7, 0), (abort, 0, 0)]);
    assert_eq!(guest.outstanding(), 0);
}

/// Reads the error log, which lets the next event through.
fn log_page_and_event(guest: &mut NvmeGuest, request: u16, answer: u32) {
    let at = guest.alloc(4096);
    let read = guest.put(0, NvmeGuest::command(2, 0, at, &[1 | 15 << 16])).unwrap();
    guest.ring(0);
    let done: Vec<_> = std::iter::from_fn(|| guest.take(0)).map(|c| (c.id, c.answer)).collect();
    assert_eq!(done, [(read, 0), (request, answer)]);
}

#[test]
fn deleting_a_queue_waits_for_its_commands_and_drops_those_that_were_not_taken() {
    let (mut guest, control) = started();
    let at = guest.alloc(4096);
    control.hold(true);
    let taken = guest.put(1, io(READ, 0, 1, [at, 0])).unwrap();
    guest.ring(1);
    assert_eq!(control.held(), 1);
    let delete = guest.put(0, NvmeGuest::command(0, 0, 0, &[1])).unwrap();
    guest.ring(0);
    guest.put(1, io(READ, 0, 1, [at, 0])).unwrap();
    guest.ring(1);
    assert_eq!((control.held(), guest.peek(0)), (1, None));
    assert_eq!(guest.admin(0, 0, 0, &[1]).status, 0x101, "it is being deleted already");
    assert_eq!(guest.admin(4, 0, 0, &[1]).status, 0x10c);
    control.hold(false);
    guest.ring(0);
    assert_eq!(guest.take(1).map(|c| (c.id, c.status)), Some((taken, 0)));
    assert_eq!(guest.take(0).map(|c| (c.id, c.status)), Some((delete, 0)));
    assert_eq!(guest.admin(4, 0, 0, &[1]).status, 0);
    assert_eq!(guest.take(1), None);
}

#[test]
fn a_reset_ends_what_is_in_flight_and_the_controller_works_again() {
    let (mut guest, control) = started();
    let at = guest.alloc(4096);
    control.hold(true);
    for queue in [1, 2] {
        for _ in 0..5 {
            guest.put(queue, io(WRITE, 0, 1, [at, 0])).unwrap();
        }
        guest.ring(queue);
    }
    guest.put(0, NvmeGuest::command(EVENT_REQUEST, 0, 0, &[])).unwrap();
    guest.ring(0);
    assert_eq!(control.held(), 10);
    // Off and on again before the controller's thread has looked.
    guest.write(0x14, 0);
    assert_eq!(guest.read(0x1c), 1, "it can't be done with that yet");
    guest.write(0x14, 0x0046_0001);
    guest.run();
    assert_eq!((guest.read(0x1c), control.held()), (1, 0));
    assert_eq!((1..3).find_map(|queue| guest.peek(queue)), None, "a completion after the reset");
    control.hold(false);
    guest.disable();
    guest.start(16);
    assert_eq!(guest.ask(1, io(READ, 0, 1, [at, 0])).status, 0);
}

#[test]
fn a_shutdown_completes_what_is_in_flight_and_flushes() {
    let (mut guest, control) = started();
    let at = guest.alloc(4096);
    control.hold(true);
    let write = guest.put(1, io(WRITE, 3, 1, [at, 0])).unwrap();
    guest.ring(1);
    guest.write(0x14, 0x0046_4001);
    assert_eq!(guest.read(0x1c), 5, "shutting down");
    guest.run();
    assert_eq!((guest.read(0x1c), control.flushes()), (9, (1, 0)));
    assert_eq!(guest.take(1).map(|c| (c.id, c.status)), Some((write, 0)));
    // Nothing is taken after it.
    guest.put(1, io(WRITE, 3, 1, [at, 0])).unwrap();
    guest.ring(1);
    assert_eq!(guest.take(1), None);
    control.hold(false);
    guest.disable();
    assert_eq!(guest.read(0x1c), 0);
    guest.start(16);
    assert_eq!(guest.ask(1, io(READ, 0, 1, [at, 0])).status, 0);
}

#[test]
fn shadow_doorbells_spare_the_register_while_the_controller_is_at_it() {
    let (mut guest, _) = started();
    assert_eq!(guest.set_shadow(), 0);
    let at = guest.alloc(4096);
    for round in 0..50 {
        let queue = 1 + round % 2;
        for _ in 0..=round % 7 {
            guest.put(queue, io(READ, u64::from(round), 1, [at, 0])).unwrap();
        }
        guest.ring(queue);
        for _ in 0..=round % 7 {
            assert_eq!(guest.take(queue).unwrap().status, 0);
        }
    }
    // A shadow that names no entry is an event, and nothing else.
    guest.memory.write_obj(GuestAddress(SHADOW[0] + 8), 16u32).unwrap();
    guest.write(0x1008, 1);
    guest.run();
    assert_eq!(guest.peek(1), None);
    let request = guest.put(0, NvmeGuest::command(EVENT_REQUEST, 0, 0, &[])).unwrap();
    guest.ring(0);
    assert_eq!(guest.take(0).map(|c| (c.id, c.answer)), Some((request, 0x01_0100)));
    // A queue that is made anew starts at its beginning.
    guest.delete(1);
    guest.create(1, 8);
    assert_eq!(guest.ask(1, io(READ, 0, 1, [at, 0])).status, 0);
}

#[test]
fn shadow_doorbells_need_pages_of_ram_and_messages() {
    let (mut guest, _) = started();
    for (doorbells, events) in
        [(0x1_0004, 0x2_0000), (0x1_0000, RAM), (u64::MAX - 4095, 0x2_0000), (0x1_0000, 0x1_0000)]
    {
        let mut command = NvmeGuest::command(0x7c, 0, doorbells, &[]);
        (command[8], command[9]) = (events as u32, (events >> 32) as u32);
        assert_eq!(guest.ask(0, command).status, INVALID_FIELD, "{doorbells:#x} {events:#x}");
    }
    let (mut guest, _) = idle(1);
    guest.enable();
    assert_eq!(guest.set_shadow(), 0x0c);
}

#[test]
fn a_pause_completes_what_is_in_flight() {
    let (mut guest, control) = started();
    let at = guest.alloc(4096);
    control.hold(true);
    let read = guest.put(1, io(READ, 1, 1, [at, 0])).unwrap();
    guest.ring(1);
    assert_eq!((guest.peek(1), control.held()), (None, 1));
    guest.nvme.pause();
    assert_eq!(guest.peek(1).map(|c| (c.id, c.status)), Some((read, 0)));
    guest.acknowledge(1);
    guest.nvme.resume();
    guest.run();
    assert!(bytes(&guest, at, 512) == content()[512..1024]);
    // A command that comes while it is paused is run afterwards.
    guest.nvme.pause();
    control.hold(false);
    let read = guest.put(1, io(READ, 1, 1, [at, 0])).unwrap();
    guest.ring(1);
    assert_eq!(guest.peek(1), None);
    guest.nvme.resume();
    guest.run();
    assert_eq!(guest.take(1).map(|c| c.id), Some(read));
}

fn disk() -> Box<dyn Disk> {
    Box::new(MemoryDisk::new(content(), false).0)
}

#[test]
fn a_checkpoint_goes_on_in_another_controller() {
    for shadow in [false, true] {
        let (mut guest, _) = started();
        assert!(!shadow || guest.set_shadow() == 0);
        let at = guest.alloc(4096);
        for _ in 0..20 {
            guest.ask(2, io(READ, 1, 1, [at, 0]));
        }
        let request = guest.put(0, NvmeGuest::command(EVENT_REQUEST, 0, 0, &[])).unwrap();
        guest.ring(0);
        guest.admin(9, 0, 0, &[6, 0]);
        guest.put(1, io(READ, 2, 1, [at, 0])).unwrap();
        guest.move_to(disk()).unwrap();
        guest.ring(1);
        assert_eq!(guest.take(1).unwrap().status, 0);
        assert!(bytes(&guest, at, 512) == content()[1024..1536]);
        assert_eq!(guest.admin(10, 0, 0, &[6]).answer, 0);
        guest.write(0x1000 + 8 * 9, 1);
        guest.run();
        assert_eq!(guest.take(0).map(|c| c.id), Some(request));
        for _ in 0..20 {
            assert_eq!(guest.ask(2, io(READ, 1, 1, [at, 0])).status, 0);
        }
        // Disabled, too.
        guest.disable();
        guest.move_to(disk()).unwrap();
        guest.start(16);
    }
}

#[test]
fn a_state_that_no_controller_saved_is_refused() {
    let (guest, _) = started();
    guest.nvme.pause();
    let section = guest.nvme.save().unwrap();
    assert!(NvmeGuest::new(disk(), 2).restore(&section).is_ok());
    assert!(NvmeGuest::new(disk(), 3).restore(&section).is_err(), "another number of queues");
    let smaller = MemoryDisk::new(vec![0; 512], false).0;
    assert!(NvmeGuest::new(Box::new(smaller), 2).restore(&section).is_err(), "another disk");
    let state: NvmeState = section.decode().unwrap();
    // Any byte string of the state cut off or changed is an error or a state, never a panic.
    for at in 0..section.bytes.len() {
        let mut bytes = section.bytes.clone();
        bytes[at] ^= 0xff;
        let damaged = Section { bytes, ..section.clone() };
        let other = NvmeGuest::new(disk(), 2);
        if other.restore(&damaged).is_ok() {
            other.nvme.resume();
            other.run();
        }
    }
    let mut dead = state.clone();
    dead.controller.live = None;
    let dead = Section::encode("nvme", &dead).unwrap();
    assert!(NvmeGuest::new(disk(), 2).restore(&dead).is_err(), "ready without queues");
    let damaged = Section { bytes: section.bytes[..section.bytes.len() / 2].to_vec(), ..section };
    assert!(guest.nvme.restore(&damaged).is_err());
}

#[test]
fn a_machine_reset_is_power_on() {
    let (mut guest, _) = started();
    let fresh = {
        let (other, _) = idle(2);
        other.nvme.pause();
        other.nvme.reset();
        other.nvme.save().unwrap()
    };
    guest.write(0x0c, 1);
    guest.nvme.pause();
    guest.nvme.reset();
    assert_eq!(guest.nvme.save().unwrap(), fresh);
    guest.nvme.resume();
    guest = {
        guest.remap();
        guest
    };
    guest.disable();
    guest.start(16);
}

#[test]
fn doorbells_and_registers_survive_any_access() {
    let (mut guest, _) = started();
    for offset in (0..0x60).chain(0xff8..0x1100).chain(0x1ff8..0x2040).chain(0x2ff8..0x3010).chain(0x3ff8..0x4004) {
        for len in [1, 2, 4, 8] {
            let mut data = [0; 8];
            guest.read_bytes(offset, &mut data[..len]);
            guest.write_bytes(offset, &[0xff; 8][..len]);
            guest.run();
        }
    }
    guest.disable();
    guest.start(16);
    let at = guest.alloc(4096);
    assert_eq!(guest.ask(1, io(READ, 0, 1, [at, 0])).status, 0);
}

#[test]
fn a_driver_that_never_waits_has_a_bounded_number_of_requests_at_the_disk() {
    let (disk, control) = MemoryDisk::new(content(), false);
    let mut guest = NvmeGuest::new(Box::new(disk), 4);
    guest.start(1024);
    let at = guest.alloc(4096);
    control.hold(true);
    for queue in 1..=4 {
        while guest.put(queue, io(READ, 0, 1, [at, 0])).is_some() {}
        guest.ring(queue);
    }
    assert!(control.held() <= 1024, "{}", control.held());
    control.hold(false);
    guest.ring(1);
    for queue in 1..=4 {
        while guest.take(queue).is_some() {}
    }
    assert_eq!(guest.outstanding(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_disk_ends_as_its_model(
        ops in prop::collection::vec((0..5u8, 0..2060u64, 1..300u32, any::<u8>(), 0..8u64, 0..12u8), 1..40),
        shadow: bool,
    ) {
        let (mut guest, control) = started();
        prop_assert!(!shadow || guest.set_shadow() == 0);
        let mut model = content();
        for (op, block, count, byte, skew, event) in ops {
            let (from, to) = (block as usize * 512, (block as usize + count as usize) * 512);
            let inside = to <= model.len();
            let base = guest.alloc(to as u64 - from as u64 + 8192);
            let skew = skew * 512;
            let data = vec![byte; to - from];
            guest.memory.write(GuestAddress(base + skew), &data).unwrap();
            let mut pointers = prps(&mut guest, base, (skew + (to - from) as u64).next_multiple_of(4096));
            pointers[0] += skew;
            let queue = 1 + u16::from(byte % 2);
            let command = match op {
                0 => io(READ, block, count, pointers),
                1 => io(WRITE, block, count, pointers),
                2 => io(WRITE_ZEROES, block, count, [0, 0]),
                3 => with_sgl(READ, block, count, descriptor(base + skew + 1, (to - from) as u32, 0)),
                _ => with_sgl(WRITE, block, count, descriptor(base + skew, (to - from) as u32, 0)),
            };
            let status = guest.ask(queue, command).status;
            prop_assert_eq!(status, if inside { 0 } else { LBA_RANGE });
            if inside {
                match op {
                    0 => prop_assert!(bytes(&guest, base + skew, to - from) == model[from..to]),
                    3 => prop_assert!(bytes(&guest, base + skew + 1, to - from) == model[from..to]),
                    2 => model[from..to].fill(0),
                    _ => model[from..to].fill(byte),
                }
            }
            match event {
                0 => {
                    guest.nvme.pause();
                    guest.nvme.resume();
                    guest.run();
                }
                1 => {
                    guest.disable();
                    guest.start(16);
                }
                2 => {
                    guest.delete(queue);
                    guest.create(queue, 5);
                }
                _ => {}
            }
            guest.free_all();
        }
        prop_assert!(control.bytes() == model);
    }

    #[test]
    fn no_command_whatever_harms_the_controller(
        commands in prop::collection::vec((0..3u16, any::<u8>(), any::<[u32; 7]>(), any::<u16>()), 1..60),
    ) {
        let (mut guest, control) = started();
        for (queue, opcode, words, kind) in commands {
            let near = |value: u32| if value & 3 == 0 { u64::from(value) << 3 } else { (u64::from(value) % RAM) & !0xfff };
            let dwords = [words[2] & 0xff, words[3], words[4] & 0xffff, words[5]];
            let dwords = if kind & 1 == 0 { dwords } else { [words[2], words[3], words[4], words[5]] };
            let mut command = NvmeGuest::command(opcode % 16, words[0] & 1, near(words[1]), &dwords);
            command[0] |= u32::from(kind & 0xc000) | if kind & 0x3f == 2 { 1 << 8 } else { 0 };
            (command[8], command[9]) = (words[6], words[6] & 1);
            if guest.put(queue, command).is_some() {
                guest.ring(queue);
            }
            for queue in 0..3 {
                // A command may have had the controller write over the queues.
                while guest.peek_leniently(queue).is_some() {
                    guest.acknowledge(queue);
                }
            }
        }
        prop_assert_eq!(control.bytes().len(), SECTORS * 512);
        guest.disable();
        guest.free_all();
        guest.start(16);
        let at = guest.alloc(4096);
        prop_assert_eq!(guest.ask(1, io(READ, 0, 1, [at, 0])).status, 0);
        prop_assert_eq!(bytes(&guest, at, 512), &control.bytes()[..512]);
    }
}
