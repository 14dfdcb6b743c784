use super::*;
use crate::library::{Library, UefiSupport};

struct Iso(Vec<u8>);

impl Iso {
    fn new(label: &str) -> Iso {
        let mut iso = Iso(vec![0; 24 * ISO_SECTOR as usize]);
        iso.sector(16, 1);
        iso.0[16 * 2048 + 40..][..32].fill(b' ');
        iso.0[16 * 2048 + 40..][..label.len()].copy_from_slice(label.as_bytes());
        iso.sector(18, 255);
        iso
    }

    fn sector(&mut self, sector: usize, kind: u8) {
        self.0[sector * 2048] = kind;
        self.0[sector * 2048 + 1..][..5].copy_from_slice(b"CD001");
    }

    /// Adds a boot record whose catalogue, in sector 20, has these entries.
    fn bootable(mut self, entries: &[(u8, u8)]) -> Iso {
        self.sector(17, 0);
        self.0[17 * 2048 + 7..][..23].copy_from_slice(b"EL TORITO SPECIFICATION");
        self.0[17 * 2048 + 0x47] = 20;
        for (i, (kind, platform)) in entries.iter().enumerate() {
            self.0[20 * 2048 + i * 32..][..2].copy_from_slice(&[*kind, *platform]);
        }
        self
    }
}

fn look(name: &str, bytes: &[u8]) -> Result<Medium, DetectError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    detect(&path)
}

fn kind(name: &str, bytes: &[u8]) -> MediumKind {
    look(name, bytes).unwrap().kind
}

fn disk(table: Table) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    if table != Table::None {
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    }
    if table == Table::Gpt {
        bytes[512..520].copy_from_slice(b"EFI PART");
    }
    bytes
}

#[test]
fn an_iso_tells_its_label_and_who_can_boot_it() {
    let iso = |entries: &[(u8, u8)]| kind("x", &Iso::new("Debian 12 n").bootable(entries).0);
    let expected = |bios, uefi| MediumKind::Iso { label: Some("Debian 12 n".into()), bios, uefi };
    assert_eq!(iso(&[(1, 0), (0x88, 0), (0x91, 0xef), (0x88, 0)]), expected(true, true));
    assert_eq!(iso(&[(1, 0), (0x88, 0)]), expected(true, false));
    assert_eq!(iso(&[(1, 0xef), (0x88, 0)]), expected(false, true));
    assert_eq!(iso(&[(1, 0), (0, 0)]), expected(false, false));
    assert_eq!(iso(&[(7, 0), (0x88, 0)]), expected(false, false));
    assert_eq!(kind("x", &Iso::new("").0), MediumKind::Iso { label: None, bios: false, uefi: false });
}

#[test]
fn a_hybrid_iso_is_an_iso_although_it_has_a_partition_table() {
    let mut iso = Iso::new("A").0;
    iso[..4096].copy_from_slice(&disk(Table::Gpt));
    assert!(matches!(kind("a.img", &iso), MediumKind::Iso { .. }));
}

#[test]
fn disks_are_told_by_their_table_or_their_name() {
    for table in [Table::Mbr, Table::Gpt] {
        assert_eq!(kind("data", &disk(table)), MediumKind::Disk { table, bios: false, uefi: false });
    }
    assert_eq!(kind("empty", &disk(Table::None)), MediumKind::Disk { table: Table::None, bios: false, uefi: false });
    let mut filesystem = disk(Table::None);
    filesystem[0x438 - 0x400] = 0x53;
    assert_eq!(kind("root.RAW", &filesystem), MediumKind::Disk { table: Table::None, bios: false, uefi: false });
    assert!(look("root.txt", &filesystem).is_err());
}

#[test]
fn a_disk_tells_who_can_boot_it() {
    let starts = |bytes: &[u8]| match kind("x.img", bytes) {
        MediumKind::Disk { bios, uefi, .. } => (bios, uefi),
        other => panic!("{other:?}"),
    };
    let mut mbr = disk(Table::Mbr);
    assert_eq!(starts(&mbr), (false, false));
    mbr[0] = 0xeb;
    assert_eq!(starts(&mbr), (true, false));
    mbr[446 + 16 + 4] = 0xef;
    assert_eq!(starts(&mbr), (true, true));
    let mut gpt = disk(Table::Gpt);
    gpt.resize(64 << 10, 0);
    gpt[512 + 72] = 2;
    gpt[512 + 84] = 128;
    assert_eq!(starts(&gpt), (false, false));
    let esp = [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
    gpt[1024 + 3 * 128..][..16].copy_from_slice(&esp);
    assert_eq!(starts(&gpt), (false, true));
    // A table that is somewhere beyond the file, or has entries of no size.
    gpt[512 + 72..][..8].fill(0xff);
    assert_eq!(starts(&gpt), (false, false));
    gpt[512 + 72..][..16].fill(0);
    assert_eq!(starts(&gpt), (false, false));
}

#[test]
fn a_linux_kernel_tells_its_version() {
    let mut kernel = vec![0; 0x4000];
    kernel[510..512].copy_from_slice(&[0x55, 0xaa]);
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x20e..0x210].copy_from_slice(&0x3000u16.to_le_bytes());
    kernel[0x3200..][..26].copy_from_slice(b"6.1.0-28-cloud-amd64 (x@y)");
    assert_eq!(kind("vmlinuz", &kernel), MediumKind::Linux { version: Some("6.1.0-28-cloud-amd64".into()) });
    kernel[0x20e..0x210].copy_from_slice(&0xffffu16.to_le_bytes());
    assert_eq!(kind("vmlinuz", &kernel), MediumKind::Linux { version: None });
}

#[test]
fn an_elf_must_be_of_this_processor() {
    let elf = |machine: u8| {
        let mut bytes = b"\x7fELF".to_vec();
        bytes.resize(64, 0);
        bytes[18] = machine;
        bytes
    };
    assert_eq!(kind("vmlinux", &elf(62)), MediumKind::Elf);
    assert!(look("vmlinux", &elf(183)).is_err());
}

#[test]
fn other_formats_are_refused_with_their_name_and_what_to_do() {
    for (at, magic, what, advice) in REFUSED {
        let mut bytes = vec![0; 4096];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        let error = look("file.img", &bytes).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains(advice), "{error}");
    }
    for bytes in [&b""[..], b"hello"] {
        assert!(matches!(look("notes.iso", bytes), Err(DetectError::Unsupported { .. })));
    }
    assert!(matches!(detect(Path::new("/")), Err(DetectError::Unsupported { .. })));
    assert!(matches!(detect(Path::new("/dev/null")), Err(DetectError::Unsupported { .. })));
    assert!(matches!(detect(Path::new("/no/such/file")), Err(DetectError::Io { .. })));
}

#[test]
fn names_are_suggested_as_people_would_write_them() {
    let named = |file: &str, label: Option<&str>| {
        let kind = MediumKind::Iso { label: label.map(Into::into), bios: true, uefi: false };
        Medium { path: format!("/x/{file}").into(), size: 0, kind }.suggested_name()
    };
    assert_eq!(named("a.iso", Some("Debian 12.8.0 amd64 n")), "Debian 12.8.0 amd64 n");
    assert_eq!(named("a.iso", Some("UBUNTU_SERVER_24.04 LTS")), "Ubuntu Server 24.04 LTS");
    assert_eq!(named("grub-rescue.iso", Some("ISOIMAGE")), "grub-rescue");
    assert_eq!(named("grub-rescue.iso", None), "grub-rescue");
    assert_eq!(named("....iso", Some("___")), "New machine");
}

#[test]
fn what_is_suggested_can_be_made() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::open(dir.path().join("machines")).unwrap();
    let limits =
        HostLimits { cpus: 2, memory_mib: 8192, memory_available_mib: 8192, space: 10 << 30, uefi: UefiSupport::Good };
    let mut kernel = disk(Table::Mbr);
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    let iso = Iso::new("A").0;
    for (name, bytes) in [("one.iso", &iso), ("two.img", &disk(Table::Gpt)), ("three", &kernel)] {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let new = detect(&path).unwrap().suggest(&limits);
        assert_eq!(new.validate(), Ok(()));
        library.create(&new).unwrap();
    }
    assert_eq!(library.load("A").unwrap().config.disks.len(), 1);
}

proptest::proptest! {
    #[test]
    fn no_file_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..4096), boot in 0u8..3) {
        let mut file = Iso::new("A").bootable(&[(1, boot)]).0;
        let _ = look("x", &bytes);
        file[20 * 2048..][..bytes.len().min(8192)].copy_from_slice(&bytes);
        file[17 * 2048 + 0x47..][..4].copy_from_slice(&[boot.wrapping_mul(100), boot, 0xff, 0xff]);
        let _ = look("x", &file);
    }
}
