package rocketcluster.clients;

import java.io.File;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/** Producer and consumer for a pod: plain ones, and a pair that knows what was acknowledged and whether it arrived. */
final class Checked {
    private Checked() {
    }

    private static DefaultMQProducer producer(Options options) throws Exception {
        DefaultMQProducer producer = new DefaultMQProducer(options.get("producer-group", "P_" + options.get("topic")));
        producer.setNamesrvAddr(options.namesrv());
        producer.setPollNameServerInterval(options.number("route-poll-ms", 30_000));
        producer.start();
        return producer;
    }

    private static DefaultMQPushConsumer consumer(Options options, MessageListenerConcurrently listener) throws Exception {
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(options.get("group"));
        consumer.setNamesrvAddr(options.namesrv());
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setPollNameServerInterval(options.number("route-poll-ms", 30_000));
        consumer.subscribe(options.get("topic"), options.get("tags", "*"));
        consumer.registerMessageListener(listener);
        consumer.start();
        return consumer;
    }

    /** Keeps to a rate without drifting; a rate of 0 means as fast as it goes. */
    private static void pace(long began, long sent, int rate) {
        if (rate > 0) {
            long due = began + sent * 1_000_000_000L / rate;
            for (long left = due - System.nanoTime(); left > 0; left = due - System.nanoTime()) {
                LockSupport.parkNanos(left);
            }
        }
    }

    static int produce(Options options) throws Exception {
        String topic = options.get("topic");
        int count = options.number("count", 10);
        int rate = options.number("rate", 0);
        String padding = "x".repeat(options.number("size", 0));
        DefaultMQProducer producer = producer(options);
        long began = System.nanoTime();
        int failed = 0;
        for (int i = 0; i < count; i++) {
            pace(began, i, rate);
            try {
                SendResult result = producer.send(new Message(topic, options.get("tags", ""), "key-" + i, ("message " + i + padding).getBytes(StandardCharsets.UTF_8)));
                System.out.println(result.getMsgId() + " " + result.getSendStatus() + " " + result.getMessageQueue().getBrokerName() + " "
                    + result.getMessageQueue().getQueueId() + " " + result.getQueueOffset() + " " + result.getOffsetMsgId());
            } catch (Exception e) {
                failed++;
                System.out.println("failed: " + e.toString().replace('\n', ' '));
            }
        }
        producer.shutdown();
        System.out.println("acknowledged " + (count - failed) + " failed " + failed);
        return failed == 0 ? 0 : 1;
    }

    static int consume(Options options) throws Exception {
        int count = options.number("count", 10);
        Set<String> ids = ConcurrentHashMap.newKeySet();
        CountDownLatch done = new CountDownLatch(1);
        DefaultMQPushConsumer consumer = consumer(options, (messages, context) -> {
            for (MessageExt message : messages) {
                if (ids.add(message.getMsgId())) {
                    String body = Rig.body(message);
                    System.out.println(message.getMsgId() + " " + body.substring(0, Math.min(body.length(), 80)));
                }
            }
            if (ids.size() >= count) {
                done.countDown();
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        boolean all = done.await(options.number("timeout", 120), TimeUnit.SECONDS);
        consumer.shutdown();
        System.out.println("consumed " + ids.size());
        return all ? 0 : 1;
    }

    /**
     * Sends numbered messages for a time (or until a file appears), consumes them, and ends with one line
     * {@code acknowledged N failed N consumed N lost N duplicates N longest_gap_ms N}. Lost = acknowledged, but not
     * consumed within the drain time. The gap is the longest time in which no thread of the producer got an acknowledgement.
     */
    static int check(Options options) throws Exception {
        String topic = options.get("topic");
        int rate = options.number("rate", 200);
        int threads = options.number("threads", 4);
        String padding = " " + "x".repeat(options.number("size", 100));
        File stop = new File(options.get("stop-file", "/nonexistent"));
        long end = System.nanoTime() + options.number("seconds", 30) * 1_000_000_000L;
        Map<String, Integer> seen = new ConcurrentHashMap<>();
        DefaultMQPushConsumer consumer = consumer(options, (messages, context) -> {
            messages.forEach(message -> seen.merge(Rig.body(message).split(" ")[0], 1, Integer::sum));
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        DefaultMQProducer producer = producer(options);
        producer.setRetryTimesWhenSendFailed(options.number("retries", 2));
        Set<String> acknowledged = ConcurrentHashMap.newKeySet();
        AtomicInteger failed = new AtomicInteger();
        AtomicLong number = new AtomicLong();
        AtomicLong last = new AtomicLong();
        AtomicLong gap = new AtomicLong();
        AtomicLong gapEnded = new AtomicLong();
        String run = Long.toString(System.nanoTime(), 36);
        long began = System.nanoTime();
        List<Thread> senders = new ArrayList<>();
        for (int t = 0; t < threads; t++) {
            Thread sender = new Thread(() -> {
                while (System.nanoTime() < end && !stop.exists()) {
                    long n = number.getAndIncrement();
                    pace(began, n, rate);
                    String id = run + "-" + n;
                    try {
                        SendResult result = producer.send(new Message(topic, (id + padding).getBytes(StandardCharsets.UTF_8)));
                        if (result.getSendStatus() != SendStatus.SEND_OK) {
                            failed.incrementAndGet();
                            System.out.println("status " + result.getSendStatus());
                            continue;
                        }
                        acknowledged.add(id);
                        long now = System.nanoTime();
                        long before = last.getAndAccumulate(now, Math::max);
                        if (before != 0 && now - before > gap.getAndAccumulate(now - before, Math::max)) {
                            gapEnded.set(System.currentTimeMillis());
                        }
                    } catch (Exception e) {
                        failed.incrementAndGet();
                        System.out.println("failed: " + e.toString().replace('\n', ' '));
                    }
                }
            });
            sender.start();
            senders.add(sender);
        }
        for (Thread sender : senders) {
            sender.join();
        }
        long silence = System.nanoTime() - last.get();
        gap.accumulateAndGet(silence, Math::max);
        long drained = System.nanoTime() + options.number("drain", 60) * 1_000_000_000L;
        while (!seen.keySet().containsAll(acknowledged) && System.nanoTime() < drained) {
            LockSupport.parkNanos(50_000_000);
        }
        consumer.shutdown();
        producer.shutdown();
        List<String> lost = acknowledged.stream().filter(id -> !seen.containsKey(id)).sorted().toList();
        long duplicates = seen.values().stream().mapToLong(times -> times - 1).sum();
        lost.stream().limit(20).forEach(id -> System.out.println("lost: " + id));
        System.out.println("acknowledged " + acknowledged.size() + " failed " + failed + " consumed " + seen.size() + " lost " + lost.size()
            + " duplicates " + duplicates + " longest_gap_ms " + TimeUnit.NANOSECONDS.toMillis(gap.get()) + " gap_ended_at " + gapEnded);
        return lost.isEmpty() && !acknowledged.isEmpty() ? 0 : 1;
    }
}
