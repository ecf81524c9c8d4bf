//! Cuts, promotions, rejoining members, a backup that refuses.

use super::*;

/// The connection is cut after every single message in turn; everything converges nevertheless.
#[test]
fn a_cut_at_any_message_is_survived() {
    let mut cut = 1;
    loop {
        let mut pair = Pair::at("/dev/shm", roots("+/m", "", ""), false);
        write(pair.a("d/f"), "1");
        write(pair.a("large"), vec![3; 1_200_000]);
        write(pair.b("stray/s"), "1");
        pair.cut_after = Some(cut);
        pair.connect();
        let mut step = 0;
        let whole = loop {
            match pair.turn() {
                None => break false,
                Some(false) if step == 4 => break true,
                Some(false) => {
                    step += 1;
                    match step {
                        1 => write(pair.a("d/new"), "2"),
                        2 => fs::rename(pair.a("d"), pair.a("e")).unwrap(),
                        3 => fs::remove_file(pair.a("e/f")).unwrap(),
                        _ => fs::set_permissions(pair.a("e"), fs::Permissions::from_mode(0o711)).unwrap(),
                    }
                }
                Some(true) => {}
            }
        };
        pair.disconnect();
        if cut % 3 == 0 {
            // The backup's process died, too: its temporaries are left.
            write(pair.b(".ringpair-dead-1.tmp"), "left");
            pair.sink = new_sink(pair.temp.path(), cut, None);
        }
        pair.cut_after = None;
        pair.connect();
        pair.synced();
        if whole {
            assert!(cut > 20, "{cut}");
            break;
        }
        cut += 1;
    }
}

#[test]
fn a_promoted_backup_knows_what_it_lacks() {
    let mut pair = Pair::new(roots("+/m", "", ""));
    write(pair.a("f"), "1");
    pair.connect();
    pair.synced();
    write(pair.a("g"), "2");
    write(pair.a("h"), "3");
    pair.now += Duration::from_secs(1);
    pair.source.turn(pair.now);
    let announcement = pair.source.poll_announcement().unwrap();
    assert!(pair.source.poll_message().is_some(), "its content may go now");
    pair.sink.handle_message(announcement, pair.now).unwrap();
    assert_eq!(pair.sink.status().state, MirrorState::Behind);
    let report = pair.sink.finish();
    let missing: Vec<_> = report.missing.iter().map(ToString::to_string).collect();
    assert!(missing.contains(&"/m/g".into()) && missing.contains(&"/m/h".into()), "{report:?}");
    assert!(report.complete);
    assert!(fs::read_dir(pair.b("")).unwrap().all(|e| !e.unwrap().file_name().as_bytes().starts_with(b".ringpair-")));
}

// REQ: REP-020
#[test]
fn what_the_backup_cannot_take_is_named_and_the_rest_goes_on() {
    let mut pair = Pair::new(roots("+/m", "", ""));
    write(pair.a("f"), "1");
    pair.connect();
    pair.synced();
    write(pair.a("full"), "2");
    write(pair.a("fine"), "3");
    let mut refused = 0;
    while refused < 2 {
        pair.now += Duration::from_millis(50);
        pair.source.turn(pair.now);
        while let Some(announcement) = pair.source.poll_announcement() {
            pair.deliver(announcement).unwrap();
        }
        while let Some(message) = pair.source.poll_message() {
            let MirrorMessage::Items { epoch, items } = message else { panic!("{message:?}") };
            let (bad, items): (Vec<_>, _) = items.into_iter().partition(|item| item.path.name() == Some(b"full"));
            for item in bad {
                refused += 1;
                let failed = MirrorMessage::Failed { generation: item.generation, reason: "no space left".into() };
                pair.source.handle_message(failed, pair.now).unwrap();
            }
            pair.deliver(MirrorMessage::Items { epoch, items }).unwrap();
        }
        pair.sink.turn(pair.now).unwrap();
        while let Some(message) = pair.sink.poll_message() {
            pair.source.handle_message(message, pair.now).unwrap();
        }
    }
    assert!(pair.b("fine").exists());
    let status = pair.source.status();
    assert_eq!((status.state, status.problems.len()), (MirrorState::Failed, 1));
    assert_eq!((&*status.problems[0].path, &*status.problems[0].reason), ("/m/full", "no space left"));
    // There is room again: it heals by itself.
    for _ in 0..20 {
        pair.now += Duration::from_millis(100);
        pair.turn().unwrap();
    }
    pair.synced();
    assert_eq!(pair.source.status().state, MirrorState::Current);
}
