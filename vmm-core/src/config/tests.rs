use super::*;

fn good() -> VmConfig {
    VmConfig::new(2, 512)
}

fn fields(config: &VmConfig) -> Vec<String> {
    config.validate().err().unwrap_or_default().into_iter().map(|e| e.field).collect()
}

#[test]
fn a_plain_machine_is_valid() {
    assert_eq!(good().validate(), Ok(()));
}

#[test]
fn every_wrong_field_is_named_at_once() {
    let mut config = good();
    config.cpus = 0;
    config.memory_mib = 1;
    config.display.width = 1;
    config.nets.push(NetConfig { tap: Some("a/b".into()), mac: None });
    assert_eq!(fields(&config), ["cpus", "memory_mib", "nets[0].tap", "display.width"]);
}

#[test]
fn a_machine_with_uefi_needs_memory_for_it() {
    let uefi = |path: &str| Boot::Uefi { variables: Some(path.into()), secure_boot: false, menu: false };
    let mut config = VmConfig { boot: uefi("nvram.fd"), ..good() };
    assert_eq!(fields(&config), [""; 0]);
    config.memory_mib = MIN_UEFI_MEMORY_MIB - 1;
    assert_eq!(fields(&config), ["memory_mib"]);
    config.memory_mib = 0;
    config.boot = uefi("");
    assert_eq!(fields(&config), ["memory_mib", "boot.variables"]);
}

#[test]
fn the_same_image_twice_is_refused_unless_nobody_writes() {
    let disk = |readonly| DiskConfig { readonly, ..DiskConfig::new("/a.img") };
    let mut config = good();
    config.disks = vec![disk(true), disk(true)];
    assert_eq!(fields(&config), [""; 0]);
    config.disks = vec![disk(true), disk(false)];
    assert_eq!(fields(&config), ["disks[1].path"]);
}

#[test]
fn cd_rom_drives_and_sata_disks_share_six_ports() {
    let mut config = good();
    config.cdroms = vec![CdromConfig::default(); 2];
    config.disks = (0..5).map(|i| DiskConfig { bus: DiskBus::Sata, ..DiskConfig::new(format!("/{i}")) }).collect();
    config.disks.insert(1, DiskConfig::new("/v"));
    assert_eq!(fields(&config), ["disks[5].bus"]);
    assert!(config.validate().unwrap_err()[0].problem.contains("6 ports"));
    config.cdroms.pop();
    assert_eq!(fields(&config), [""; 0]);
}

#[test]
fn a_disks_controller_is_known_by_the_name_that_files_have() {
    for bus in DiskBus::ALL {
        assert_eq!(bus.name().parse(), Ok(bus));
        assert_eq!(ciborium::Value::serialized(&bus).unwrap(), ciborium::Value::Text(bus.name().into()));
    }
    assert!("scsi".parse::<DiskBus>().unwrap_err().contains(DiskBus::ALL[0].name()));
    // A file of before there was a choice has no such field, and needs none.
    let plain = ciborium::Value::serialized(&DiskConfig::new("/a.img")).unwrap();
    let path = (ciborium::Value::Text("path".into()), ciborium::Value::Text("/a.img".into()));
    assert_eq!(plain, ciborium::Value::Map(vec![path]));
    assert_eq!(plain.deserialized::<DiskConfig>().unwrap(), DiskConfig::new("/a.img"));
}

#[test]
fn a_mac_address_round_trips_and_bad_ones_are_refused() {
    let mac = Mac::try_from("52:54:00:ab:cd:ef".to_string()).unwrap();
    assert_eq!(mac.to_string(), "52:54:00:ab:cd:ef");
    for bad in
        ["", "52:54:00:ab:cd", "52:54:00:ab:cd:ef:01", "53:54:00:ab:cd:ef", "5:54:00:ab:cd:ef0", "zz:54:00:ab:cd:ef"]
    {
        assert!(Mac::try_from(bad.to_string()).is_err(), "{bad}");
    }
}

#[test]
fn a_topology_has_to_have_as_many_threads_as_there_are_cpus() {
    let mut config = good();
    let topology = |sockets, cores, threads| Some(Topology { sockets, cores, threads });
    for (good, arrangement) in [
        (true, topology(2, 1, 1)),
        (true, topology(1, 1, 2)),
        (true, None),
        (false, topology(2, 2, 1)),
        (false, topology(0, 2, 1)),
        (false, topology(1 << 31, 2, 1 << 1)),
    ] {
        config.topology = arrangement;
        let wrong: &[&str] = if good { &[] } else { &["topology"] };
        assert_eq!(fields(&config), wrong, "{arrangement:?}");
    }
    config.topology = None;
    assert_eq!(config.topology(), Topology { sockets: 1, cores: 2, threads: 1 });
}

#[test]
fn a_uuid_is_read_with_hyphens_or_without_and_bad_ones_are_refused() {
    let plain = Uuid::try_from("00112233445566778899aabbccddeeff".to_string()).unwrap();
    assert_eq!(plain.to_string(), "00112233-4455-6677-8899-aabbccddeeff");
    assert_eq!(Uuid::try_from(plain.to_string()), Ok(plain));
    for bad in [
        "",
        "0011",
        "00112233445566778899aabbccddeef",
        "00112233445566778899aabbccddeeff00",
        "0x112233445566778899aabbccddeeff",
    ] {
        assert!(Uuid::try_from(bad.to_string()).is_err(), "{bad}");
    }
}
