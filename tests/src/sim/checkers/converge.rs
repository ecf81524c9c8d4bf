//! After faults end: one active, one backup, equal histories, the right granted (invariant 4).

use ringpair_wire::control::Role;

use super::{
    super::{member::name, world::World},
    Verdict, rule,
};

/// Whether the pair is whole, and who is active then.
///
/// # Errors
/// What is missing.
pub fn missing(world: &World) -> Result<usize, String> {
    let status = |m: usize| world.members[m].seen.as_ref();
    let (Some(a), Some(b)) = (status(0), status(1)) else { return Err("a member does not run".into()) };
    let active = match (a.role, b.role) {
        (Role::Active, Role::Backup) => 0,
        (Role::Backup, Role::Active) => 1,
        (a, b) => return Err(format!("A is {}, B is {}", a.name(), b.name())),
    };
    let (on, off) = (if active == 0 { a } else { b }, if active == 0 { b } else { a });
    if !on.exclusive {
        return Err(format!("{} is not exclusive", name(active)));
    }
    if on.alone || on.right.is_none() || off.right != on.right {
        return Err(format!("the right is not granted: {:?}, {:?}, alone {}", on.right, off.right, on.alone));
    }
    if !on.writable {
        return Err(format!("{} admits no writes", name(active)));
    }
    if !on.ready {
        return Err("commence has not ended".into());
    }
    let (mine, theirs) = (&world.members[active].disk.journal, &world.members[1 - active].disk.journal);
    if mine.end() != theirs.end() || theirs.synced != theirs.end().seq || mine.synced != mine.end().seq {
        return Err(format!("the histories differ: {:?}, {:?}", mine.end(), theirs.end()));
    }
    Ok(active)
}

/// The verdict after the liveness phase: whole, or a named reason that only an operator can end.
///
/// # Errors
/// If the pair is not whole and says no reason.
pub fn judge(world: &World, came: bool) -> Verdict {
    if came {
        return Ok(());
    }
    let what = missing(world).err().unwrap_or_default();
    let said: Vec<String> = (0..2)
        .map(|m| {
            let status = world.members[m].seen.as_ref();
            status.map_or_else(
                || format!("{}: no answer", name(m)),
                |status| {
                    let warnings: Vec<&str> = status.warnings.iter().map(|warning| warning.code).collect();
                    format!("{}: {} ({}) {warnings:?}", name(m), status.state.name(), status.state_reason)
                },
            )
        })
        .collect();
    let ends: Vec<String> = (0..2)
        .map(|m| {
            let journal = &world.members[m].disk.journal;
            let (end, written, synced) = (journal.end().seq, journal.written, journal.synced);
            format!("{} through {end}, written {written}, synced {synced}, lanes {:?}", name(m), world.net.up[m])
        })
        .collect();
    let what = format!("{what}; {}", ends.join("; "));
    let stated = world.plan.destructive && said.iter().any(|said| said.contains("Try:"));
    rule("converge", stated, || format!("{what}; {}", said.join("; ")))
}

/// Equal record by record.
///
/// # Errors
/// If they are not.
pub fn equal(world: &World) -> Verdict {
    let (a, b) = (world.members[0].disk.journal.log(), world.members[1].disk.journal.log());
    rule("converge", a == b, || {
        let at = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
        format!("the members' records differ from number {} on: {} and {} records", at + 1, a.len(), b.len())
    })
}
