package rocketcluster.clients;

import static rocketcluster.clients.Rig.check;
import static rocketcluster.clients.Rig.until;

import java.nio.charset.StandardCharsets;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentSkipListSet;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/** A group that elects its master loses it with SIGKILL while a stock producer sends and a stock consumer reads. */
final class Failover {
    private static final int BEFORE = 500;
    private static final int AFTER = 500;
    /** Every so many is sent back once: it comes again on the new master. */
    private static final int SENT_BACK = 20;
    /** Every so many is delayed. */
    private static final int DELAYED = 25;

    private Failover() {
    }

    /** {@code --pids ADDRESS=PID,…}: the members' processes; {@code --name BROKER}: their group. */
    static int run(Options options) throws Exception {
        try (Rig rig = new Rig(options.namesrv(), Long.toString(System.nanoTime(), 36), "failover", Rig.admin(options.namesrv()))) {
            System.out.println("PASS failover " + run(rig, options.get("name"), options.get("pids")));
            System.out.println("1 passed, 0 failed");
            return 0;
        } catch (Rig.Failed e) {
            System.out.println("FAIL failover " + e.getMessage());
            System.out.println("0 passed, 1 failed");
            return 1;
        }
    }

    private static String master(Rig rig, String name) throws Exception {
        var broker = rig.admin.examineBrokerClusterInfo().getBrokerAddrTable().get(name);
        return broker == null ? null : broker.getBrokerAddrs().get(0L);
    }

    private static String run(Rig rig, String name, String pids) throws Exception {
        rig.createTopic();
        Set<String> got = new ConcurrentSkipListSet<>();
        Set<String> returned = ConcurrentHashMap.newKeySet();
        Set<String> again = ConcurrentHashMap.newKeySet();
        DefaultMQPushConsumer consumer = rig.newPushConsumer();
        consumer.subscribe(rig.topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            for (MessageExt message : messages) {
                String body = Rig.body(message);
                if (message.getReconsumeTimes() > 0) {
                    again.add(body);
                } else if (Integer.parseInt(body) % SENT_BACK == 0 && returned.add(body)) {
                    return ConsumeConcurrentlyStatus.RECONSUME_LATER;
                }
                got.add(body);
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.setConsumeMessageBatchMaxSize(1);
        rig.start(consumer);
        DefaultMQProducer producer = rig.newProducer();
        producer.setPollNameServerInterval(500);
        producer.setSendMsgTimeout(3_000);
        producer.start();
        rig.onClose(producer::shutdown);

        Set<String> acknowledged = new TreeSet<>();
        long last = System.nanoTime();
        long outage = 0;
        String killed = null;
        for (int n = 0; n < BEFORE + AFTER; n++) {
            if (n == BEFORE) {
                killed = master(rig, name);
                kill(killed, pids);
            }
            String body = Integer.toString(n);
            Message message = new Message(rig.topic, body.getBytes(StandardCharsets.UTF_8));
            if (n % DELAYED == 1) {
                message.setDelayTimeLevel(1);
            }
            long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(60);
            while (!sent(producer, message)) {
                check(System.nanoTime() < deadline, "message " + n + " is not taken by anybody");
                LockSupport.parkNanos(20_000_000);
            }
            acknowledged.add(body);
            outage = Math.max(outage, System.nanoTime() - last);
            last = System.nanoTime();
        }
        String old = killed;
        until(30, "another master in the name server's table", () -> master(rig, name) != null && !master(rig, name).equals(old));
        try {
            until(90, "everything acknowledged", () -> got.containsAll(acknowledged));
        } catch (Rig.Failed e) {
            Set<String> missing = new TreeSet<>(acknowledged);
            missing.removeAll(got);
            throw new Rig.Failed(e.getMessage() + ", " + missing.size() + " are missing: " + missing.stream().limit(5).toList());
        }
        check(again.containsAll(returned), "what was sent back did not come with its count of tries");
        return acknowledged.size() + " acknowledged, all consumed, " + again.size() + " of them sent back first; longest time without a send: "
            + TimeUnit.NANOSECONDS.toMillis(outage) + " ms";
    }

    private static boolean sent(DefaultMQProducer producer, Message message) throws InterruptedException {
        try {
            return producer.send(message).getSendStatus() == SendStatus.SEND_OK;
        } catch (org.apache.rocketmq.client.exception.MQClientException
            | org.apache.rocketmq.client.exception.MQBrokerException
            | org.apache.rocketmq.remoting.exception.RemotingException e) {
            return false;
        }
    }

    private static void kill(String address, String pids) {
        for (String pair : pids.split(",")) {
            String[] parts = pair.split("=");
            if (parts[0].equals(address)) {
                ProcessHandle.of(Long.parseLong(parts[1])).orElseThrow().destroyForcibly();
                return;
            }
        }
        throw new Rig.Failed("no process for the master " + address);
    }
}
