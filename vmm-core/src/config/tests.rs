use super::*;

fn good() -> VmConfig {
    VmConfig {
        cpus: 2,
        memory_mib: 512,
        boot: Boot::Bios,
        disks: vec![],
        cdroms: vec![],
        nets: vec![],
        display: DisplayConfig::default(),
        tpm: false,
    }
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
    config.nets.push(NetConfig { tap: "a/b".into(), mac: None });
    assert_eq!(fields(&config), ["cpus", "memory_mib", "nets[0].tap", "display.width"]);
}

#[test]
fn the_same_image_twice_is_refused_unless_nobody_writes() {
    let disk = |readonly| DiskConfig { path: "/a.img".into(), readonly, cache: Cache::Auto };
    let mut config = good();
    config.disks = vec![disk(true), disk(true)];
    assert_eq!(fields(&config), [""; 0]);
    config.disks = vec![disk(true), disk(false)];
    assert_eq!(fields(&config), ["disks[1].path"]);
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
