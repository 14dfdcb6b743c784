use super::*;

fn library() -> (tempfile::TempDir, Library) {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::open(dir.path().join("machines")).unwrap();
    (dir, library)
}

fn plain(name: &str) -> NewMachine {
    NewMachine {
        name: name.into(),
        cpus: 1,
        memory_mib: 64,
        boot: Boot::Bios,
        disks: vec![],
        cdroms: vec![],
        nets: vec![],
        display: DisplayConfig::default(),
        tpm: false,
        topology: None,
        hyperv: false,
    }
}

fn names(library: &Library) -> Vec<String> {
    library.list().unwrap().iter().map(Entry::name).collect()
}

#[test]
fn a_machine_with_uefi_keeps_its_variables_in_its_folder_until_they_are_reset() {
    let (dir, library) = library();
    let new = NewMachine { boot: Firmware::Uefi.boot(), memory_mib: 256, ..plain("a") };
    let mut machine = library.create(&new).unwrap();
    let path = machine.folder().join("nvram.fd");
    assert!(matches!(&machine.resolved().boot, Boot::Uefi { variables: Some(named), .. } if *named == path));
    assert!(!library.reset_variables("a").unwrap());
    std::fs::write(&path, "x").unwrap();
    let lock = machine.lock_to_run().unwrap();
    assert!(matches!(library.reset_variables("a"), Err(LibraryError::Running { .. })));
    drop(lock);
    assert!(path.exists());
    assert!(library.reset_variables("a").unwrap());
    assert!(!path.exists());
    let elsewhere = dir.path().join("letters");
    std::fs::write(&elsewhere, "dear").unwrap();
    machine.config.boot = Boot::Uefi { variables: Some(elsewhere.clone()), secure_boot: false, menu: false };
    library.save(&machine).unwrap();
    assert!(matches!(library.reset_variables("a"), Err(LibraryError::NoVariables { .. })));
    assert!(elsewhere.exists());
    library.create(&plain("b")).unwrap();
    assert!(matches!(library.reset_variables("b"), Err(LibraryError::NoVariables { .. })));
}

/// Replaces the machine's file and reads it again.
fn reread(
    library: &Library,
    machine: &Machine,
    change: impl FnOnce(String) -> String,
) -> Result<Machine, LibraryError> {
    let path = machine.folder().join(machine::FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, change(text)).unwrap();
    library.load(machine.folder().file_name().unwrap().to_str().unwrap())
}

fn broken(result: Result<Machine, LibraryError>) -> (Option<usize>, Option<String>, String) {
    match result {
        Err(LibraryError::Broken { line, field, problem, .. }) => (line, field, problem),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_machine_is_read_as_it_was_made() {
    let (dir, library) = library();
    let iso = dir.path().join("a.iso");
    std::fs::write(&iso, "").unwrap();
    let new = NewMachine {
        boot: Boot::Kernel { kernel: iso.clone(), initrd: Some(iso.clone()), cmdline: "a=\"b\" c".into() },
        disks: vec![NewDisk::create(1 << 30), NewDisk::existing(&iso, true), NewDisk::create(2 << 30)],
        cdroms: vec![Some(iso.clone()), None],
        nets: vec![NetConfig { tap: Some("tap0".into()), mac: None }],
        display: DisplayConfig { width: 800, height: 600 },
        tpm: true,
        topology: Some(Topology { sockets: 1, cores: 1, threads: 1 }),
        hyperv: true,
        ..plain("Debian 12 (“bookworm”)")
    };
    let made = library.create(&new).unwrap();
    let read = library.load(&new.name).unwrap();
    assert_eq!(made, read);
    assert_eq!(made.folder(), library.root().join("debian-12-bookworm"));
    assert_eq!(made.config.disks[2].path, Path::new("disks/disk-2.raw"));
    let resolved = made.resolved();
    assert_eq!(std::fs::metadata(&resolved.disks[2].path).unwrap().len(), 2 << 30);
    assert_eq!(resolved.disks[1].path, iso);
    assert_eq!(made.own_disks().len(), 2);
    assert_eq!(library.load(&made.id).unwrap(), made);
    assert_eq!(library.load("debian-12-bookworm").unwrap(), made);
}

#[test]
fn every_configuration_survives_its_file() {
    use proptest::prelude::*;
    let (_dir, library) = library();
    let made = library.create(&plain("x")).unwrap();
    let text = "[^\\x00]{0,20}";
    let strategy = (1u32..=64, 4u64..1024, text, proptest::option::of(text), 0usize..4);
    proptest!(|((cpus, memory_mib, path, cmdline, count) in strategy)| {
        let mut machine = made.clone();
        machine.config.cpus = cpus;
        machine.config.memory_mib = memory_mib;
        machine.config.disks = (0..count)
            .map(|i| DiskConfig { readonly: i % 2 == 1, bus: DiskBus::ALL[i % DiskBus::ALL.len()], ..DiskConfig::new(format!("{i}{path}")) })
            .collect();
        machine.config.cdroms = vec![CdromConfig { path: None }, CdromConfig { path: Some(path.clone().into()) }];
        if let Some(cmdline) = cmdline {
            machine.config.boot = Boot::Kernel { kernel: format!("k{path}").into(), initrd: None, cmdline };
        }
        library.save(&machine).unwrap();
        prop_assert_eq!(library.load("x").unwrap(), machine);
    });
}

#[test]
fn a_name_is_given_once_whatever_its_case() {
    let (_dir, library) = library();
    library.create(&plain("Debian")).unwrap();
    assert!(matches!(library.create(&plain("dEBIAN ")), Err(LibraryError::Exists(name)) if name == "Debian"));
    let other = library.create(&plain("debian!")).unwrap();
    assert_eq!(other.folder(), library.root().join("debian-2"));
    assert!(matches!(library.rename("debian!", "DEBIAN"), Err(LibraryError::Exists(_))));
    assert_eq!(library.rename("debian", "DEBIAN").unwrap().name, "DEBIAN");
    assert_eq!(names(&library), ["DEBIAN", "debian!"]);
}

#[test]
fn a_renamed_machine_keeps_its_folder_and_id() {
    let (_dir, library) = library();
    let made = library.create(&plain("one")).unwrap();
    let renamed = library.rename("one", "two").unwrap();
    assert_eq!((renamed.folder(), &renamed.id), (made.folder(), &made.id));
    assert!(matches!(library.load("three"), Err(LibraryError::NotFound { .. })));
    assert_eq!(library.load("two").unwrap(), renamed);
}

#[test]
fn a_wrong_name_leads_to_the_one_that_was_meant() {
    let (_dir, library) = library();
    library.create(&plain("Debian 12")).unwrap();
    for (typed, near) in [("debain 12", true), ("Debian", true), ("debain", true), ("windows", false), ("", false)] {
        let Err(LibraryError::NotFound { near: found, .. }) = library.load(typed) else { panic!() };
        assert_eq!(found.is_some(), near, "{typed}");
    }
}

#[test]
fn a_creation_that_fails_leaves_nothing_behind() {
    let (_dir, library) = library();
    // The first disk can be made, the second is larger than the file system takes.
    let disks = vec![NewDisk::create(1 << 20), NewDisk::create(MAX_DISK)];
    let too_large = library.create(&NewMachine { disks, ..plain("big") });
    if let Ok(machine) = too_large {
        // This file system takes it: then the machine is whole.
        assert_eq!(machine.own_disks().len(), 2);
        library.trash("big").unwrap();
    }
    let missing = NewMachine { cdroms: vec![Some("/no/such.iso".into())], ..plain("a") };
    assert!(matches!(library.create(&missing), Err(LibraryError::Io { .. })));
    let wrong = NewMachine { cpus: 0, disks: vec![NewDisk::create(5)], ..plain("a\u{7}") };
    let fields: Vec<String> = wrong.validate().unwrap_err().into_iter().map(|e| e.field).collect();
    assert_eq!(fields, ["name", "disks[0].size", "cpus"]);
    assert!(library.create(&wrong).is_err());
    let left: Vec<_> = std::fs::read_dir(library.root()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == ".lock" || name == ".trash"), "{left:?}");
}

#[test]
fn what_a_crash_left_half_made_is_not_seen_and_goes() {
    let (_dir, library) = library();
    std::fs::create_dir_all(library.root().join(".new/disks")).unwrap();
    assert_eq!(names(&library), [""; 0]);
    library.create(&plain("a")).unwrap();
    assert!(!library.root().join(".new").exists());
}

#[test]
fn a_broken_file_is_told_with_line_and_field_and_hurts_no_other() {
    let (_dir, library) = library();
    let disks = vec![NewDisk::create(1 << 20), NewDisk::create(1 << 20)];
    let made = library.create(&NewMachine { disks, ..plain("a") }).unwrap();
    library.create(&plain("b")).unwrap();
    let whole = std::fs::read_to_string(made.folder().join(machine::FILE)).unwrap();
    let check = |from: &str, to: &str, at: Option<usize>, name: &str| {
        assert!(whole.contains(from));
        let (line, field, problem) = broken(reread(&library, &made, |_| whole.replace(from, to)));
        assert_eq!((line, field.as_deref()), (at, Some(name)), "{to:?}: {problem}");
    };
    check("cpus = 1", "cpus = \"one\"", Some(5), "cpus");
    check("cpus = 1", "cpus = 0", Some(5), "cpus");
    check("cpus = 1", "cpus = 1\ncolour = 3", Some(6), "colour");
    check("cpus = 1\n", "", None, "cpus");
    check("cpus = 1", "cpus = = 1", Some(5), "cpus");
    check("width = 1280", "width = 1", Some(12), "display.width");
    check("width = 1280", "depth = 1", Some(12), "display.depth");
    check("disks/disk-1.raw\"", "disks/disk-1.raw\"\nspeed = 2", Some(20), "disks[1].speed");
    check("disks/disk-1.raw", "disks/disk-0.raw", Some(19), "disks[1].path");
    check("kind = \"bios\"", "kind = \"coreboot\"", Some(9), "boot.kind");
    check("name = \"a\"", "name = \"\"", Some(3), "name");
    check(&made.id, "../../etc", Some(2), "id");
    check("Z\"", "\"", Some(4), "created");
    check("schema = 1", "schema = 0", Some(1), "schema");
    check("schema = 1\n", "", None, "schema");
    assert_eq!(names(&library), ["a", "b"]);
    assert!(library.load("b").is_ok());
}

#[test]
fn a_file_of_a_newer_version_is_told_as_such_whatever_else_is_in_it() {
    let (_dir, library) = library();
    let made = library.create(&plain("a")).unwrap();
    let newer = |text: String| text.replace("schema = 1", "schema = 2").replace("cpus = 1", "sockets = 4");
    let (line, field, problem) = broken(reread(&library, &made, newer));
    assert_eq!((line, field.as_deref()), (Some(1), Some("schema")));
    assert!(problem.contains("newer"), "{problem}");
}

#[test]
fn files_that_are_no_toml_are_errors_of_their_own() {
    let (_dir, library) = library();
    let made = library.create(&plain("a")).unwrap();
    let path = made.folder().join(machine::FILE);
    std::fs::write(&path, [0xff, 0xfe, 0]).unwrap();
    assert!(broken(library.load("a")).2.contains("UTF-8"));
    std::fs::write(&path, vec![b'#'; 2 << 20]).unwrap();
    assert!(broken(library.load("a")).2.contains("larger"));
    std::fs::remove_file(&path).unwrap();
    assert!(broken(library.load("a")).2.contains("missing"));
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(library.load("a"), Err(LibraryError::Io { .. })));
    assert_eq!(names(&library), ["a"]);
}

#[test]
fn no_file_whatever_panics() {
    use proptest::prelude::*;
    let (_dir, library) = library();
    let made = library.create(&plain("a")).unwrap();
    let whole = std::fs::read_to_string(made.folder().join(machine::FILE)).unwrap();
    proptest!(|(cut in 0..whole.len(), noise in "[\\[\\]=\"\n.a-c0-9]{0,30}")| {
        let _ = reread(&library, &made, |_| format!("{}{noise}{}", &whole[..cut], &whole[cut..]));
    });
}

#[test]
fn a_deleted_machine_comes_back_as_it_was() {
    let (_dir, library) = library();
    let made = library.create(&NewMachine { disks: vec![NewDisk::create(1 << 20)], ..plain("a") }).unwrap();
    std::fs::write(&made.resolved().disks[0].path, b"data").unwrap();
    let trashed = library.trash("A").unwrap();
    assert_eq!(names(&library), [""; 0]);
    assert_eq!(library.trashed().unwrap(), std::slice::from_ref(&trashed));
    assert_eq!(library.restore(&trashed).unwrap(), made);
    assert_eq!(std::fs::read(&made.resolved().disks[0].path).unwrap(), b"data");
    assert_eq!(library.trashed().unwrap(), []);
}

#[test]
fn a_name_taken_meanwhile_keeps_a_machine_in_the_trash() {
    let (_dir, library) = library();
    library.create(&plain("a")).unwrap();
    let first = library.trash("a").unwrap();
    library.create(&plain("a")).unwrap();
    assert!(matches!(library.restore(&first), Err(LibraryError::Exists(_))));
    let second = library.trash("a").unwrap();
    assert_eq!(library.trashed().unwrap().len(), 2);
    library.restore(&second).unwrap();
    assert_eq!(library.empty_trash().unwrap(), 1);
    assert_eq!(library.empty_trash().unwrap(), 0);
    assert_eq!(names(&library), ["a"]);
}

#[test]
fn emptying_the_trash_follows_no_link_out_of_it() {
    let (dir, library) = library();
    let precious = dir.path().join("precious");
    std::fs::create_dir(&precious).unwrap();
    std::fs::write(precious.join("thesis"), "").unwrap();
    library.create(&plain("a")).unwrap();
    let trashed = library.trash("a").unwrap();
    std::os::unix::fs::symlink(&precious, trashed.folder.join("link")).unwrap();
    std::os::unix::fs::symlink(&precious, library.root().join(".trash/link")).unwrap();
    assert_eq!(library.empty_trash().unwrap(), 2);
    assert!(precious.join("thesis").exists());
}

#[test]
fn a_machine_that_runs_is_not_deleted() {
    let (_dir, library) = library();
    let mut made = library.create(&plain("a")).unwrap();
    let lock = made.lock_to_run().unwrap();
    assert!(matches!(library.trash("a"), Err(LibraryError::Running { pid, .. }) if pid == std::process::id()));
    assert!(matches!(made.lock_to_run(), Err(LibraryError::Running { .. })));
    drop(lock);
    library.trash("a").unwrap();
}

#[test]
fn a_copied_folder_is_a_machine_and_gets_an_id_of_its_own_when_it_starts() {
    let (_dir, library) = library();
    let made = library.create(&NewMachine { disks: vec![NewDisk::create(1 << 20)], ..plain("a") }).unwrap();
    let copy = library.root().join("copy");
    std::fs::create_dir_all(copy.join("disks")).unwrap();
    for file in ["machine.toml", "disks/disk-0.raw"] {
        std::fs::copy(made.folder().join(file), copy.join(file)).unwrap();
    }
    let mut copied = library.load("copy").unwrap();
    assert_eq!(copied.resolved().disks[0].path, copy.join("disks/disk-0.raw"));
    assert_eq!(copied.id, made.id);
    library.make_id_unique(&mut copied).unwrap();
    assert_ne!(copied.id, made.id);
    assert_eq!(library.load("copy").unwrap(), copied);
    let mut original = library.load(&made.id).unwrap();
    library.make_id_unique(&mut original).unwrap();
    assert_eq!(original, made);
}

#[test]
fn a_link_to_a_folder_elsewhere_is_a_machine() {
    let (dir, library) = library();
    let made = library.create(&plain("a")).unwrap();
    let elsewhere = dir.path().join("elsewhere");
    std::fs::rename(made.folder(), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, library.root().join("a")).unwrap();
    std::fs::write(library.root().join("notes.txt"), "").unwrap();
    assert_eq!(names(&library), ["a"]);
}

#[test]
fn two_at_a_time_never_get_one_name() {
    let (_dir, library) = library();
    let made: Vec<bool> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|_| scope.spawn(|| library.create(&plain("a")).is_ok())).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(made.iter().filter(|&&ok| ok).count(), 1);
    assert_eq!(names(&library), ["a"]);
}
