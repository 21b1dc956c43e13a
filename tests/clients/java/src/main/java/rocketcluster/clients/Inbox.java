package rocketcluster.clients;

import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import org.apache.rocketmq.common.message.MessageExt;

/** What a consumer got, in the order in which it got it. */
final class Inbox {
    private final List<MessageExt> messages = new ArrayList<>();

    synchronized void add(List<MessageExt> more) {
        messages.addAll(more);
    }

    synchronized List<MessageExt> all() {
        return new ArrayList<>(messages);
    }

    synchronized int size() {
        return messages.size();
    }

    /** The distinct bodies, sorted. */
    synchronized Set<String> bodies() {
        Set<String> bodies = new TreeSet<>();
        for (MessageExt message : messages) {
            bodies.add(Rig.body(message));
        }
        return bodies;
    }

    /** Waits until every body is here, then checks that nothing else is and nothing came twice. */
    void exactly(Set<String> expected, int seconds) {
        atLeast(expected, seconds);
        Rig.equal(expected, bodies(), "bodies");
        Rig.equal(expected.size(), size(), "messages, each body once");
    }

    void atLeast(Set<String> expected, int seconds) {
        try {
            Rig.until(seconds, expected.size() + " messages", () -> bodies().containsAll(expected));
        } catch (Rig.Failed e) {
            Set<String> missing = new TreeSet<>(expected);
            missing.removeAll(bodies());
            throw new Rig.Failed(e.getMessage() + ", " + size() + " came, missing " + missing.stream().limit(5).toList());
        }
    }
}
